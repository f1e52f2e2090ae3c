"""A change of a denoiser, by hand."""

import torch
from safetensors.torch import load_file
from torch import nn

from aiao_diffusers.bench.audits import fuzz
from aiao_diffusers.bench.audits.change import Change, save


def change() -> Change:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 4, 3))
    factors = {"0": (torch.randn(1, 3), torch.randn(2, 1)), "1": (torch.randn(2, 2, 3, 3), torch.randn(4, 2, 1, 1))}
    return Change(base, factors)


def test_deltas_are_products_in_the_weights_shape():
    made = change()
    down, up = made.factors["0"]
    assert torch.equal(made.delta("0"), up @ down)
    down, up = made.factors["1"]
    by_hand = torch.einsum("or,rikl->oikl", up[..., 0, 0], down)
    assert torch.allclose(made.delta("1"), by_hand, atol=1e-6) and made.delta("1").shape == (4, 2, 3, 3)


def test_merged_weights_are_changed_and_the_base_is_not():
    made = change()
    before = {name: tensor.clone() for name, tensor in made.base.state_dict().items()}
    merged = made.merged()
    assert torch.equal(merged["0.weight"], before["0.weight"] + made.delta("0"))
    assert torch.equal(merged["0.bias"], before["0.bias"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.base.state_dict().items())
    assert not torch.equal(merged["1.weight"], before["1.weight"])


def test_a_saved_state_comes_back(tmp_path):
    path = save(tmp_path / "new" / "x.safetensors", {"a": torch.arange(4.0)[::2]})
    assert torch.equal(load_file(path)["a"], torch.tensor([0.0, 2.0]))


def test_a_decoy_is_the_twin_or_else_the_base_at_half():
    made = change()
    other = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(2, 4, 3))
    assert torch.equal(made.decoy()["0.weight"], made.base.state_dict()["0.weight"] / 2)
    assert torch.equal(Change(made.base, made.factors, other).decoy()["1.bias"], other.state_dict()["1.bias"])


def test_a_model_has_the_inputs_that_its_tensors_ask_for():
    base = fuzz.small_unet()
    made, state = Change(base, {}), base.state_dict()
    same = made.model(state)
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items()) and not same.training
    state |= {"conv_in.weight": torch.zeros(8, 9, 3, 3), "time_embedding.cond_proj.weight": torch.zeros(8, 5)}
    wide = made.model(state)
    assert wide.config.in_channels == 9 and wide.config.time_cond_proj_dim == 5
