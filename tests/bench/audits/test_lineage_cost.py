"""Cost is measured of what it says: readings, forwards, shapes of published models."""

import pytest
import torch
from _carried import SCHEDULER, latents, planted, text_unet
from safetensors.torch import load_file, save_file

from aiao_diffusers.bench.audits import lineage_cost as cost
from aiao_diffusers.bench.audits.lineage_cost import (
    SDXL,
    blank_unet,
    measure_cost,
    measure_forwards,
    measure_rate,
    measure_reading,
    random_adapter,
)


@pytest.fixture(scope="module")
def unet():
    return text_unet()


def test_a_reading_and_two_forwards_have_their_cost(unet, tmp_path):
    save_file({n: v.contiguous() for n, v in planted(unet).items()}, tmp_path / "a.safetensors")
    told = measure_reading("own", tmp_path / "a.safetensors", unet, 1)
    assert told["sites"] == 24 and told["seconds"] > 0 and 0 < told["file_mib"] < 1 and told["peak_mib"] >= 0
    forwards = measure_forwards("own", unet, latents(), SCHEDULER, 1)
    assert forwards["seconds"] > 0 and forwards["sites"] is None
    rate = measure_rate(tmp_path / "a.safetensors", unet, 2)
    assert rate["readings"] == 2 and rate["an_hour"] == pytest.approx(7200 / rate["core_seconds"])


def test_random_adapters_have_the_layers_that_are_targeted(unet, tmp_path):
    state = load_file(random_adapter(unet, "attention", tmp_path / "a.safetensors"))
    assert len(state) == 2 * sum(
        name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) for name, _ in unet.named_modules()
    )
    assert all(value.dtype == torch.float16 and cost.RANK in value.shape for value in state.values())


@pytest.mark.slow
def test_the_shapes_are_sdxls():
    blank = blank_unet(SDXL)
    assert sum(p.numel() for p in blank.parameters()) == 2_567_463_684  # as its card says: 2.6 billion
    assert all(p.is_meta for p in blank.parameters())


@pytest.mark.slow
def test_every_row_is_measured(unet, tmp_path, monkeypatch):
    class Held:
        def twin(self, kind):
            return unet

        def data(self, kind):
            return latents()

        def scheduler(self, kind):
            return SCHEDULER

    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    for name in ("SD15", "SDXL"):
        monkeypatch.setattr(cost, name, config)
    monkeypatch.setattr(cost, "REPEATS", 1)
    monkeypatch.setattr(cost, "FEW", 1)
    monkeypatch.setattr(cost, "random_model", lambda kind, config, dtype: kind(**config).eval())
    monkeypatch.setattr(cost, "random_bank", lambda model, size: latents())
    save_file({n: v.contiguous() for n, v in planted(unet).items()}, tmp_path / "own.safetensors")
    told = measure_cost(Held(), tmp_path / "own.safetensors", tmp_path, count=1, progress=lambda line: None)
    assert len(told["rows"]) == 7 and told["rate"]["readings"] == 1
