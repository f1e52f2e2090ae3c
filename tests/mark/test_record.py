"""Records and training data: round trips and refusals."""

import dataclasses
import hashlib
import json

import pytest
import torch

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord
from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.errors import RecordError
from aiao_diffusers.mark.record import DOCUMENT, FOLDER


@pytest.fixture
def record():
    bank = LatentData(torch.randn(3, 4, 8, 8), {"added_cond_kwargs.text_embeds": torch.randn(3, 5)})
    return WatermarkRecord("A", "00", "UNet2DConditionModel", 22, 5, 7, 1.0, 1.0, {"num_train_timesteps": 50}, bank)


LAYOUT = tuple(Site(f"site.{order}", order, 4, 4) for order in range(22))


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestLoudness:
    def loud(self, record, values):
        return dataclasses.replace(record, layout=LAYOUT, loudness=values)

    def test_round_trip(self, record, tmp_path):
        values = (0.0, 3.0, *(1.0,) * 20)
        self.loud(record, values).save(tmp_path)
        again = WatermarkRecord.load(tmp_path)
        assert again.loudness == values and again.factors["site.1"] == 3.0 and again.silent == {"site.0"}
        record.save(tmp_path / "plain")
        plain = WatermarkRecord.load(tmp_path / "plain")
        assert plain.loudness is None and plain.factors == {} and plain.silent == frozenset()

    @pytest.mark.parametrize(
        "values",
        [(1.0,) * 21, (-1.0,) * 22, (float("nan"),) * 22, ("1",) * 22, (True,) * 22, (101.0,) * 22, (0.0,) * 22],
    )
    def test_altered(self, record, tmp_path, values):
        with pytest.raises(RecordError, match="loudness"):
            self.loud(record, values)
        self.loud(record, (1.0,) * 22).save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "loudness": 5}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)

    def test_needs_a_layout(self, record):
        with pytest.raises(RecordError, match="loudness"):
            dataclasses.replace(record, loudness=(1.0,) * 22)


class TestRecord:
    def test_round_trip(self, record, tmp_path):
        record.save(tmp_path)
        again = WatermarkRecord.load(tmp_path)
        assert torch.equal(again.bank.latents, record.bank.latents) and again.scheduler == record.scheduler
        assert set(again.bank.keywords()) == {"added_cond_kwargs"}

    def test_altered_bank(self, record, tmp_path):
        record.save(tmp_path)
        path = tmp_path / "aiao" / "probe.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(RecordError, match="altered"):
            WatermarkRecord.load(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"scheme": "aiao-2"},
            {"scheme": ["aiao-1"]},
            {"surprise": 1},
            {"owner": 7},
            {"marked_sha256": 7},
            {"sites": True},
            {"in_sites": 10**9},
            {"kappa": -1.0},
            {"kappa": "1"},
            {"response": float("1e999")},
            {"scheduler": []},
            {"scheduler": {"num_train_timesteps": 0}},
            {"scheduler": {"num_train_timesteps": 10**12}},
            {"scheduler": {"num_train_timesteps": "x"}},
            {"scheduler": {"beta_schedule": "unheard of"}},
            {"scheduler": {"beta_start": []}},
            {"probe": [1]},
            {"probe": None},
            {"layout": 5},
            {"layout": [["a", 4, 10**9]] * 22},
            {"layout": [["a", 4]] * 22},
            {"layout": [["a", 4, 4]] * 22},
            {"layout": [["a", 4, 4]]},
            {"layout": [[[], 4, 4]] * 22},
            {"layout": [[]] * 22},
            {"scheduler": {"num_train_timesteps": 50, "trained_betas": [0.1, 0.2]}},
            {"kappa": 1e-30},
            {"kappa": 10**400},
            {"response": 1e30},
        ],
        ids=str,
    )
    def test_altered_document(self, record, tmp_path, change):
        record.save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)

    @pytest.mark.parametrize(
        "text", ["[" * 200_000, "[]", "", "{", '{"scheme": "aiao-1", "scheme": "aiao-1"}', "\xff"]
    )
    def test_document_that_is_no_object(self, record, tmp_path, text):
        record.save(tmp_path)
        (tmp_path / "aiao" / "watermark.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(RecordError, match="cannot be read"):
            WatermarkRecord.load(tmp_path)

    def test_bank_that_is_no_safetensors_file(self, record, tmp_path):
        record.save(tmp_path)
        bank, path = b"\x05" * 40, tmp_path / "aiao" / "watermark.json"
        (tmp_path / "aiao" / "probe.safetensors").write_bytes(bank)
        document = json.loads(path.read_text())
        document["probe"]["sha256"] = hashlib.sha256(bank).hexdigest()
        path.write_text(json.dumps(document))
        with pytest.raises(RecordError, match="bad fields"):
            WatermarkRecord.load(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(RecordError, match="no watermark record"):
            WatermarkRecord.load(tmp_path)


class TestPairs:
    def test_says_so_and_older_ones_do_not(self, begun, tmp_path):
        record = begun[1]
        record.save(tmp_path / "pairs")
        assert record.pairs and WatermarkRecord.load(tmp_path / "pairs").pairs
        written = (tmp_path / "pairs" / "aiao" / "watermark.json").read_bytes()
        assert record.sha256 == hashlib.sha256(written).hexdigest()
        shared = dataclasses.replace(record, pairs=False)
        shared.save(tmp_path / "shared")
        assert "pairs" not in json.loads((tmp_path / "shared" / "aiao" / "watermark.json").read_text())
        assert not WatermarkRecord.load(tmp_path / "shared").pairs and shared.sha256 != record.sha256

    @pytest.mark.parametrize("value", [1, "true", [True]])
    def test_altered(self, begun, tmp_path, value):
        begun[1].save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pairs": value}))
        with pytest.raises(RecordError, match="pairs"):
            WatermarkRecord.load(tmp_path)


class TestRecordFile:
    @pytest.fixture
    def record(self, record):
        return dataclasses.replace(record, layout=LAYOUT)

    def test_hash_is_that_of_the_file(self, record, tmp_path):
        import hashlib

        record.save(tmp_path)
        loaded = WatermarkRecord.load(tmp_path)
        assert loaded.layout == record.layout
        digest = hashlib.sha256((tmp_path / FOLDER / DOCUMENT).read_bytes()).hexdigest()
        assert loaded.sha256 == record.sha256 == digest
        assert dataclasses.replace(record, kappa=2.0).sha256 != digest
        altered = dataclasses.replace(record.bank, latents=record.bank.latents + 1)
        assert dataclasses.replace(record, bank=altered).sha256 != digest

    def test_altered_layout(self, record):
        with pytest.raises(RecordError, match="altered"):
            dataclasses.replace(record, layout=record.layout[1:])

    @pytest.mark.parametrize("layout", [5, [["a", 1]], [["a", "x", "y"]] * 22])
    def test_broken_layout(self, record, tmp_path, layout):
        import json

        record.save(tmp_path)
        path = tmp_path / FOLDER / DOCUMENT
        path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)
