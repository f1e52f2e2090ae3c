"""Commitments: round trip, every change of a file is refused, dates and beacons are never replaced."""

import dataclasses
import json
import random

import pytest
from _kind import FULL
from _tiny import commit_tiny, learner

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.errors import AIAOError, CommitmentError, KeyMismatchError, OutputExistsError
from aiao_diffusers.mark.committed import COMMITTED
from aiao_diffusers.protocol.beacon import by_hand
from aiao_diffusers.protocol.commitment import PROBE, Commitment


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def made():
    return commit_tiny()[1]


@pytest.fixture
def path(made, tmp_path):
    return made.save_new(tmp_path / "commitment.json")


class TestFiles:
    def test_round_trip(self, made, path):
        again = Commitment.load(path)
        assert again.sha256 == made.sha256 and again.companions == made.companions
        assert again.drawn(KEY).beacon == made.beacon.randomness
        assert again.to_record("0" * 64).commitment == made.sha256

    def test_never_overwritten(self, made, path):
        with pytest.raises(OutputExistsError, match="commitment.json"):
            made.save_new(path)
        path.unlink()
        with pytest.raises(OutputExistsError, match="probe"):
            made.save_new(path)

    @pytest.mark.parametrize("name", [name for name in COMMITTED if name != "scheme"])
    def test_every_field_is_bound(self, path, made, name):
        document = json.loads(path.read_text())
        document[name] = {"a": 1} if document[name] is None else document[name] * 2
        path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
        try:
            changed = Commitment.load(path)
        except CommitmentError:
            return  # it has become no commitment at all
        assert changed.sha256 != made.sha256

    def test_printed_anew(self, path):
        path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
        with pytest.raises(CommitmentError, match="printed anew"):
            Commitment.load(path)

    def test_another_bank(self, path):
        data = learner()[1]
        LatentData(data.latents[:4] + 1, {}).save(path.with_suffix(PROBE))
        with pytest.raises(CommitmentError, match="probe bank is not the one"):
            Commitment.load(path)

    @pytest.mark.parametrize("change", [{"aiao": 3}, {"more": 1}, {"kappa": "nan"}, {"layout": 5}, {"loudness": "x"}])
    def test_bad_documents(self, path, change):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}, sort_keys=True, separators=(",", ":")))
        with pytest.raises(CommitmentError, match="commitment.json"):
            Commitment.load(path)

    def test_missing(self, tmp_path):
        with pytest.raises(CommitmentError, match="No such file"):
            Commitment.load(tmp_path / "no.json")

    def test_mutations_are_never_accepted(self, path, made):
        chance, raw = random.Random(5), path.read_bytes()
        for _ in range(3000 if FULL else 60):
            changed = bytearray(raw)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            if chance.random() < 0.2:
                del changed[chance.randrange(len(changed)) :]
            if bytes(changed) == raw:
                continue
            path.write_bytes(changed)
            try:
                assert Commitment.load(path).sha256 != made.sha256
            except AIAOError as error:
                assert isinstance(error, CommitmentError)


class TestUse:
    def test_of_another_key(self, made):
        with pytest.raises(KeyMismatchError, match="another key"):
            made.drawn(KEY.child("x"))

    def test_before_the_draw(self):
        early = commit_tiny(None)[1]
        with pytest.raises(CommitmentError, match="no beacon"):
            early.drawn(KEY)
        with pytest.raises(CommitmentError, match="no beacon"):
            early.to_record("0" * 64)

    def test_a_second_draw_is_refused(self, made):
        other = json.dumps(by_hand("again").to_dict()).encode()
        with pytest.raises(CommitmentError, match="never replaced"):
            made.with_companions(beacon=other)
        assert made.with_companions(beacon=made.companions.beacon).sha256 == made.sha256

    def test_fields_of_another_kind(self, made):
        with pytest.raises(CommitmentError, match="kappa"):
            dataclasses.replace(made, fields={**made.fields, "kappa": 1e9})
        with pytest.raises(CommitmentError, match="other fields"):
            dataclasses.replace(made, fields={**made.fields, "more": 1})
