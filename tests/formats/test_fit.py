"""Whether a whole denoiser's file fits is told by headers alone."""

import pytest
import torch
from _tiny import tiny_unconditional
from safetensors.torch import save_file

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, UnsafeFileError
from aiao_diffusers.formats.checkpoint import load_denoiser


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def old_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for new, name in OLD.items():
        state = {key.replace(f".{new}.", f".{name}."): value.clone() for key, value in state.items()}
    return state


def test_old_names_of_attention_in_a_bare_file(tmp_path):
    model = tiny_unconditional()
    base = tiny_unconditional()
    base.conv_in.weight.data.add_(1.0)
    save_file(old_names(model.state_dict()), tmp_path / "x.safetensors")
    assert tensor_sha256(load_denoiser(tmp_path / "x.safetensors", base=base)) == tensor_sha256(model)


def test_a_weight_under_its_old_name_and_its_new_one(tmp_path):
    """Which of the two would run is the loader's choice: the verdict could be about the other."""
    model = tiny_unconditional()
    state = old_names(model.state_dict())
    both = state | {k: v.clone() for k, v in model.state_dict().items() if ".to_q." in k}
    save_file(both, tmp_path / "x.safetensors")
    with pytest.raises(UnsafeFileError, match="twice"):
        load_denoiser(tmp_path / "x.safetensors", base=model)


def test_integers_for_a_vector_of_a_bare_file(tmp_path):
    model = tiny_unconditional()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["conv_in.bias"] = state["conv_in.bias"].to(torch.int16)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(NotTestableError, match=r"conv_in\.bias.*int16"):
        load_denoiser(tmp_path / "x.safetensors", base=model)
