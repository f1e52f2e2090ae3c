"""Records and training data: round trips and refusals."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
import torch

from aiao_diffusers.denoiser.inputs import LatentData
from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.embedding.embed import EmbedConfig
from aiao_diffusers.errors import ConfigError, DataError, RecordError
from aiao_diffusers.mark.record import WatermarkRecord


@pytest.fixture
def record():
    bank = LatentData(torch.randn(3, 4, 8, 8), {"added_cond_kwargs.text_embeds": torch.randn(3, 5)})
    return WatermarkRecord("A", "00", "UNet2DConditionModel", 22, 5, 7, 1.0, 1.0, {"num_train_timesteps": 50}, bank)


LAYOUT = tuple(Site(f"site.{order}", order, 4, 4) for order in range(22))


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


def test_data_refuses_what_it_cannot_use():
    with pytest.raises(DataError, match="no samples"):
        LatentData(torch.zeros(0, 4, 8, 8), {})
    with pytest.raises(DataError, match="rows"):
        LatentData(torch.zeros(2, 4, 8, 8), {"encoder_hidden_states": torch.zeros(3, 1, 1)})
    with pytest.raises(DataError, match="NaN"):
        LatentData(torch.full((2, 4, 8, 8), float("nan")), {})


def test_config_takes_numpys_numbers_as_plain_ones():
    config = EmbedConfig(steps=np.int64(3), kappa=np.float32(0.5), max_price=np.float64(0.25), seed=np.uint8(7))
    assert config == EmbedConfig(steps=3, kappa=0.5, max_price=0.25, seed=7)
    assert [type(x) for x in (config.steps, config.kappa, config.max_price, config.seed)] == [int, float, float, int]
    json.dumps(dataclasses.asdict(config))


@pytest.mark.parametrize("field", ["steps", "batch_size", "lr", "kappa", "eps"])
def test_config_names_the_bad_field(field):
    with pytest.raises(ConfigError, match=field):
        EmbedConfig(**{field: -1})
