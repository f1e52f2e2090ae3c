"""What a commitment fixes: the canonical document, by hand; the tree over the leaves."""

import hashlib
import json

import pytest

from aiao_diffusers import WatermarkKey
from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.mark.committed import (
    COMMITTED,
    canonical,
    commitment_document,
    commitment_sha256,
    leaf_hash,
    leaf_hashes,
    leaf_labels,
    merkle_path,
    merkle_root,
    root_of_path,
)


KEY = WatermarkKey(bytes(range(32)), "Demo")
LAYOUT = [Site(f"s{order}", order, 8, 4) for order in range(8)]
FIELDS = {
    **dict.fromkeys(COMMITTED),
    "kappa": 1,
    "response": 0.3,
    "loudness": (1.0, 2.5),
    "layout": LAYOUT[:2],
    "scheduler": {"b": 0.1, "a": 1},
    "pairs": False,
}


class TestDocument:
    def test_by_hand(self):
        document = json.loads(canonical(commitment_document(FIELDS)))
        assert document["kappa"] == "1.0" and document["response"] == "0.3" and document["loudness"] == ["1.0", "2.5"]
        assert document["layout"] == [["s0", 8, 4], ["s1", 8, 4]] and document["scheduler"] == '{"a": 1, "b": 0.1}'
        assert list(document)[0] == "aiao" and document["aiao"] == 2 and set(document) == {"aiao", *COMMITTED}
        assert commitment_sha256(FIELDS) == hashlib.sha256(canonical(commitment_document(FIELDS))).hexdigest()

    def test_layout_and_numbers_read_back_give_the_same_bytes(self):
        rows = [[site.name, site.width_in, site.width_out] for site in LAYOUT[:2]]
        again = {**FIELDS, "kappa": 1.0, "layout": rows, "scheduler": {"a": 1, "b": 0.1}}
        assert canonical(commitment_document(again)) == canonical(commitment_document(FIELDS))

    @pytest.mark.parametrize(
        "name", [n for n in COMMITTED if n not in ("kappa", "response", "loudness", "layout", "scheduler")]
    )
    def test_every_field_counts(self, name):
        assert commitment_sha256({**FIELDS, name: "changed"}) != commitment_sha256(FIELDS)

    @pytest.mark.parametrize(
        "change",
        [
            {"kappa": 1.5},
            {"response": 1},
            {"loudness": None},
            {"layout": LAYOUT[:1]},
            {"scheduler": {"a": 1, "b": 0.2}},
        ],
    )
    def test_every_number_counts(self, change):
        assert commitment_sha256({**FIELDS, **change}) != commitment_sha256(FIELDS)


class TestTree:
    def test_labels_are_of_every_candidate(self):
        assert leaf_labels(LAYOUT, pairs=False) == [
            *("trigger/s0", "trigger/s1", "trigger/s2"),
            *("response/s5", "response/s6", "response/s7"),
        ]
        assert "trigger/s0/for/s7" in leaf_labels(LAYOUT, pairs=True) and len(leaf_labels(LAYOUT, pairs=True)) == 12

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
    def test_every_path_leads_to_the_root(self, count):
        hashes = [bytes([number]) * 32 for number in range(count)]
        root = merkle_root(hashes)
        for place in range(count):
            path = merkle_path(hashes, place)
            assert root_of_path(hashes[place], place, count, path) == root
            assert root_of_path(b"x" * 32, place, count, path) != root
            assert root_of_path(hashes[place], place, count, [*path, b"x" * 32]) != root
            if count > 1:
                assert root_of_path(hashes[place], (place + 1) % count, count, path) != root
                assert root_of_path(hashes[place], place, count, path[:-1]) != root

    def test_root_by_hand(self):
        a, b, c = (bytes([n]) * 32 for n in range(3))
        inner = hashlib.sha256(b"\1" + a + b).digest()
        assert merkle_root([a, b, c]) == hashlib.sha256(b"\1" + inner + c).digest()

    def test_a_leaf_hides_its_secret_and_depends_on_its_label(self):
        secret = KEY.leaf_secret("trigger/s0")
        assert leaf_hash("trigger/s0", secret) != leaf_hash("trigger/s1", secret)
        assert leaf_hashes(KEY, LAYOUT, pairs=False)[0] == leaf_hash("trigger/s0", secret)
