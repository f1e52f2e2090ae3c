"""Leaves: what one shows and hides, every forgery is refused, and a verdict from one leaf with its controls."""

import dataclasses
import json
import random

import pytest
from _kind import FULL
from _tiny import learner, mark_bound, mark_pairs

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.errors import ConfigError, LeafError, OutputExistsError
from aiao_diffusers.protocol.leaves import Leaf, count_choices, disclose, leaf_by_beacon, open_leaf, split_key


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def bound():
    return mark_bound(steps=60, out_sites=4)


@pytest.fixture(scope="module")
def record(bound):
    return bound[1]


class TestSplit:
    def test_no_out_site_is_in_two_leaves(self, record):
        parts = split_key(KEY, record)
        outs = [name for _, share in parts for name in share]
        assert len(parts) == record.in_sites and len(outs) == len(set(outs)) == record.out_sites

    def test_pairs_have_a_leaf_each(self):
        record = mark_bound(steps=1, pairs=True)[1]
        parts = split_key(KEY, record)
        assert len(parts) == record.in_sites * record.out_sites and all(len(share) == 1 for _, share in parts)
        key = open_leaf(disclose(KEY, record, 2), record)
        (site,), (out,) = key.sites(list(record.layout))
        whole = record.drawn(KEY)
        assert (key.trigger_mask(site.name, 8, out.name) == whole.trigger_mask(site.name, 8, out.name)).all()

    def test_randomness_picks_every_leaf_alike(self, record):
        picked = [leaf_by_beacon(bytes([n]) * 32, record, 5) for n in range(250)]
        assert set(picked) == {1, 2, 3, 4, 5} and max(picked.count(n) for n in range(1, 6)) < 75

    def test_choices_by_hand(self, record):
        # 8 sites: in-sites among the first 3, out-sites among the last 3
        assert count_choices(list(record.layout)[:8], 2, pairs=False) == 3 * 3
        assert count_choices(list(record.layout)[:8], 1, pairs=True) == 3 * 3

    def test_no_leaves(self, record):
        with pytest.raises(LeafError, match="aiao-1"):
            split_key(KEY, mark_pairs()[1])
        with pytest.raises(LeafError, match="another key"):
            split_key(KEY.child("x"), record)
        with pytest.raises(ConfigError, match="leaves 1 to 2"):
            disclose(KEY, record, 3)


class TestOpening:
    def test_holds_its_own_labels_alone(self, record):
        key, whole = open_leaf(disclose(KEY, record, 1), record), record.drawn(KEY)
        ins, outs = key.sites(list(record.layout))
        assert (key.trigger_mask(ins[0].name, 16) == whole.trigger_mask(ins[0].name, 16)).all()
        assert (key.response_pattern(outs[0].name, 16) == whole.response_pattern(outs[0].name, 16)).all()
        other = split_key(KEY, record)[1][0]
        with pytest.raises(LeafError, match=other.replace(".", "\\.")):
            key.trigger_mask(other, 16)

    def test_forgeries(self, record):
        leaf, other = disclose(KEY, record, 1), disclose(KEY, record, 2)
        label = next(iter(leaf.secrets))
        wrong = {**leaf.secrets, label: bytes(32)}
        paths = {**leaf.paths, label: (*leaf.paths[label][:-1], bytes(32))}
        for forged in (
            dataclasses.replace(leaf, secrets=wrong),
            dataclasses.replace(leaf, paths=paths),
            dataclasses.replace(leaf, in_site=other.in_site),
            dataclasses.replace(leaf, out_sites=other.out_sites),
            dataclasses.replace(leaf, out_sites=(*leaf.out_sites, *other.out_sites)),
            dataclasses.replace(leaf, commitment="0" * 64),
            disclose(KEY.child("x"), mark_bound_of(KEY.child("x")), 1),
        ):
            with pytest.raises(LeafError):
                open_leaf(forged, record)
        with pytest.raises(LeafError, match="twice"):
            dataclasses.replace(leaf, out_sites=leaf.out_sites * 2)

    def test_files(self, record, tmp_path):
        leaf = disclose(KEY, record, 1)
        path = leaf.save_new(tmp_path / "leaf.json")
        assert Leaf.load(path) == leaf and path.stat().st_mode & 0o777 == 0o600
        assert KEY.secret.hex() not in path.read_text()
        with pytest.raises(OutputExistsError):
            leaf.save_new(path)
        document = json.loads(path.read_text())
        for bad in (
            {**document, "version": 2},
            {**document, "more": 1},
            {**document, "secrets": 5},
            {**document, "owner": 3},
        ):
            path.write_text(json.dumps(bad))
            with pytest.raises(LeafError, match="leaf"):
                Leaf.load(path)

    def test_mutations_are_never_opened(self, record, tmp_path):
        path = disclose(KEY, record, 1).save_new(tmp_path / "leaf.json")
        chance, raw, whole = random.Random(3), path.read_bytes(), Leaf.load(path)
        for _ in range(5000 if FULL else 200):
            changed = bytearray(raw)
            changed[chance.randrange(len(changed))] = chance.randrange(256)
            path.write_bytes(changed)
            try:
                leaf = Leaf.load(path)
                if (leaf.secrets, leaf.paths, leaf.in_site) != (whole.secrets, whole.paths, whole.in_site):
                    open_leaf(leaf, record)
                    raise AssertionError(bytes(changed))
            except LeafError:
                pass


def mark_bound_of(key):
    """A record that commits to this key."""
    from _tiny import LEARN

    from aiao_diffusers import EmbedConfig
    from aiao_diffusers.embedding.commit import commit
    from aiao_diffusers.protocol.beacon import by_hand

    unet, data, scheduler = learner()
    made = commit(
        unet, key, data, EmbedConfig(**(LEARN | {"steps": 1, "out_sites": 4})), scheduler=scheduler
    ).commitment
    return made.with_companions(beacon=json.dumps(by_hand("tiny").to_dict()).encode()).to_record("0" * 64)


class TestVerdict:
    def test_one_leaf_and_its_controls(self, bound, record):
        marked, clean = bound[0], learner()[0]
        options = {"record": record, "alpha": 1e-3, "whiten": False, "amplitudes": (1.0,)}
        leaf = disclose(KEY, record, 1)
        report = verify(marked, leaf, **options)
        assert report.verified and {site.name for site in report.sites} == set(leaf.out_sites)
        assert report.plan["leaves"] == open_leaf(leaf, record).choices > 1
        assert any("one leaf" in text for text in report.warnings)
        assert verify(clean, leaf, **options).verdict == "not_verified"
        stranger = mark_bound_of(KEY.child("x"))
        wrong = verify(marked, disclose(KEY.child("x"), stranger, 1), **{**options, "record": stranger})
        assert wrong.verdict == "not_verified"
