"""Every way of training gives a file that the library reads, with its scales in the factors."""

import copy
from dataclasses import replace

import pytest
import torch
from _carried import SCHEDULER, latents, text_unet
from _lineage import SHORT
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from aiao_diffusers.bench.audits import lineage_training as training
from aiao_diffusers.bench.audits.lineage_cells import METHODS, OPTIMISERS
from aiao_diffusers.bench.audits.lineage_training import held_out, held_out_loss, split, train_adapter
from aiao_diffusers.denoiser.call import prediction
from aiao_diffusers.errors import TrainingError
from aiao_diffusers.formats.lora import apply_lora


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return text_unet()


def outputs(denoiser):
    data = latents().take(torch.arange(2))
    with torch.no_grad():
        return prediction(denoiser.eval(), data.latents, torch.tensor([3, 500]), data.keywords())


CHANGES = [
    *({"method": name} for name in METHODS),
    *({"optimiser": name} for name in OPTIMISERS),
    *({"init": name} for name in ("gaussian", "pissa", "olora")),
    {"dropout": 0.5},
    {"alpha": 8.0},
    {"method": "rslora", "alpha": 1.0},
]


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "-".join(map(str, change.values())))
def test_the_file_does_to_the_model_what_training_did(unet, change, tmp_path):
    cell = replace(SHORT, **{"lr": 0.05, "steps": 4, **change})
    trained = copy.deepcopy(unet)
    made = train_adapter(trained, cell, latents(), SCHEDULER)
    save_file({name: value.contiguous() for name, value in made.state.items()}, tmp_path / "a.safetensors")
    plain = copy.deepcopy(unet)
    with apply_lora(plain, tmp_path / "a.safetensors"):
        torch.testing.assert_close(outputs(plain), outputs(trained), atol=2e-4, rtol=2e-3)
        assert not torch.allclose(outputs(plain), outputs(unet), atol=2e-4)
    assert (made.raw is not None) == (cell.init in ("pissa", "olora")) and len(made.curve) == 4


def test_same_seed_same_adapter_and_the_short_is_the_beginning_of_the_long(unet):
    first, again, longer = (
        train_adapter(copy.deepcopy(unet), replace(SHORT, steps=steps), latents(), SCHEDULER) for steps in (2, 2, 3)
    )
    assert all(torch.equal(value, again.state[name]) for name, value in first.state.items())
    assert longer.curve[:2] == first.curve


def test_a_teacher_and_a_hook_are_heard(unet):
    seen = []
    made = train_adapter(
        copy.deepcopy(unet), SHORT, latents(), SCHEDULER, teacher=unet, after_step=lambda model: seen.append(model)
    )
    assert len(seen) == SHORT.steps and made.curve[0] < 1e-6  # the student begins as its teacher


def test_a_loss_that_is_not_finite_is_refused(unet):
    broken = copy.deepcopy(unet)
    with torch.no_grad():
        broken.conv_in.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="lower lr"):
        train_adapter(broken, SHORT, latents(), SCHEDULER)


def test_no_cell_is_trained_on_what_is_held_out(monkeypatch, unet):
    monkeypatch.setattr(training, "HELD_OUT", 8)
    data = latents()
    kept = {tuple(row.flatten().tolist()) for row in held_out(data).latents}
    mine = {tuple(row.flatten().tolist()) for row in split(data, 100, 3).latents}
    assert len(kept) == 8 and len(mine) == len(data) - 8 and not kept & mine
    assert held_out_loss(unet, data, SCHEDULER) == held_out_loss(unet, data, SCHEDULER) > 0
