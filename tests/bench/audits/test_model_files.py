"""Writers of whole models: inputs that are wider, weights that lie beside, models that a program holds."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from aiao_diffusers.bench.audits import fuzz
from aiao_diffusers.bench.audits.change import Change
from aiao_diffusers.bench.audits.model_files import Part, guide, in_memory, original_state, upload, which_file, widen
from aiao_diffusers.denoiser.setup import for_reading
from aiao_diffusers.denoiser.sites import unwrap


@pytest.fixture(scope="module")
def change() -> Change:
    return fuzz.small_change(fuzz.small_unet())


def predict(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    sample = nn.functional.pad(sample, (0, 0, 0, 0, 0, model.conv_in.in_channels - 4))
    with torch.no_grad():
        return model(sample, 5, torch.randn(2, 3, 12, generator=generator)).sample


def test_wider_inputs_change_nothing_where_they_are_zero_and_something_where_not(change):
    plain, state = change.model(change.merged()), change.merged()
    for other in (widen(state, 9), widen(state, 5), guide(state)):
        assert torch.allclose(predict(change.model(other)), predict(plain), atol=1e-5)
    wide = change.model(widen(state, 9))
    with torch.no_grad():
        seen = wide(torch.ones(1, 9, 8, 8), 5, torch.zeros(1, 3, 12)).sample
        alone = plain(torch.ones(1, 4, 8, 8), 5, torch.zeros(1, 3, 12)).sample
    assert not torch.allclose(seen, alone, atol=1e-3)


def test_original_names_hold_every_number(change):
    state = change.merged()
    original = original_state(state, change.base)
    assert all(key.startswith("model.diffusion_model.") for key in original) and len(original) == len(state)
    assert sum(t.numel() for t in original.values()) == sum(t.numel() for t in state.values())


def test_parts_lie_beside_each_other_with_the_fields_asked_for(change, tmp_path):
    upload(Part(shards=True, fields={"_class_name": None, "power": 2}), Part(decoy=True))(change, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"} <= names
    upload(Part(fields={"_class_name": None, "power": 2}))(change, tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert "_class_name" not in config and config["power"] == 2


@pytest.mark.parametrize("fmt", list(which_file()), ids=lambda f: f.name)
def test_what_lies_beside_are_the_other_models_weights(change, tmp_path, fmt):
    """A reader of the wrong file is told: its weights are far from those that a stock loader runs."""
    other = fuzz.small_unet(seed=5)
    turned = Change(change.base, change.factors, other)
    running = fmt.stock(turned, fmt.write(turned, tmp_path)).state_dict()
    decoy = turned.decoy()
    assert all(torch.equal(decoy[name], value) for name, value in other.state_dict().items())
    assert max(float((running[name] - decoy[name]).abs().max()) for name in running) > 0.1


MEMORY = [
    pytest.param(fmt, id=fmt.name, marks=[pytest.mark.slow] if "compile" in fmt.name else []) for fmt in in_memory()
]  # the compiler takes seconds to import


@pytest.mark.parametrize("fmt", MEMORY)
def test_a_model_in_memory_computes_what_its_patched_weights_do(change, tmp_path, fmt):
    model = fmt.write(change, tmp_path)
    plain = unwrap(model)
    assert isinstance(plain, UNet2DConditionModel)
    ours, wanted = predict(for_reading(plain)[0]), predict(change.model(fmt.merged(change)))
    assert torch.allclose(ours, wanted, atol=1e-5)
    assert not torch.allclose(wanted, predict(change.base), atol=1e-3)
