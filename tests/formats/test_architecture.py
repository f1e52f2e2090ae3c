"""A bare file widens its base's architecture as its tensors say, and changes the base in nothing."""

from threading import Thread

import pytest
import torch
from _tiny import ldm_state, run, tiny_unconditional, tiny_unet
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, WrongBaseError
from aiao_diffusers.formats.architecture import blank_like, config_changes
from aiao_diffusers.formats.checkpoint import load_denoiser


WIDENED = {
    "inpainting": {"in_channels": 9},
    "editing": {"in_channels": 8},
    "depth": {"in_channels": 5},
    "upscaling": {"in_channels": 7, "num_class_embeds": 10},
    "guidance": {"time_cond_proj_dim": 6},
    "text": {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"},
}


def other(seed: int = 5, **changes: object) -> UNet2DConditionModel:
    config = {name: value for name, value in tiny_unet().config.items() if not name.startswith("_")}
    torch.manual_seed(seed)
    return UNet2DConditionModel.from_config({**config, **changes}).eval()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDENED)
def test_a_widened_file_on_a_plain_base_and_back(tmp_path, name):
    wide, plain = other(**WIDENED[name]), tiny_unet()
    before = tensor_sha256(plain)
    save_file(wide.state_dict(), tmp_path / "wide.safetensors")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    loaded = load_denoiser(tmp_path / "wide.safetensors", base=plain)
    assert tensor_sha256(loaded) == tensor_sha256(wide) and tensor_sha256(plain) == before
    assert {k: loaded.config[k] for k in WIDENED[name]} == WIDENED[name] and not loaded.training
    back = load_denoiser(tmp_path / "plain.safetensors", base=wide)
    assert tensor_sha256(back) == before and torch.equal(run(back), run(plain))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        *({"in_channels": n} for n in (5, 7, 8, 9)),
        {"time_cond_proj_dim": 6},
        {"time_cond_proj_dim": 6, "in_channels": 9},
    ],
    ids=str,
)
def test_in_original_keys(tmp_path, changes):
    wide, plain = other(**changes), tiny_unet()
    for name, model in (("wide", wide), ("plain", plain)):
        save_file({k: v.contiguous().clone() for k, v in ldm_state(model).items()}, tmp_path / f"{name}.safetensors")
    loaded = load_denoiser(tmp_path / "wide.safetensors", base=plain)
    assert tensor_sha256(loaded) == tensor_sha256(wide) and {k: loaded.config[k] for k in changes} == changes
    assert tensor_sha256(load_denoiser(tmp_path / "wide.safetensors", base=wide)) == tensor_sha256(wide)
    assert tensor_sha256(load_denoiser(tmp_path / "plain.safetensors", base=wide)) == tensor_sha256(plain)


def test_the_embedding_of_guidance_must_fit_and_be_finite(tmp_path):
    state = {k: v.contiguous().clone() for k, v in ldm_state(other(time_cond_proj_dim=6)).items()}
    name = "model.diffusion_model.time_embed.cond_proj.weight"
    for tensor, error, match in (
        (torch.full_like(state[name], torch.nan), NotTestableError, "NaN or Inf"),
        (state[name].repeat(2, 1), WrongBaseError, "numbers of a denoiser"),
        (state[name].T.contiguous(), WrongBaseError, "numbers of a denoiser"),
    ):
        save_file(state | {name: tensor}, tmp_path / "x.safetensors")
        with pytest.raises(error, match=match):
            load_denoiser(tmp_path / "x.safetensors", base=tiny_unet())


def test_adapters_in_the_base_stay_behind(tmp_path):
    model = other()
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    save_file({k: v.contiguous().clone() for k, v in ldm_state(model).items()}, tmp_path / "y.safetensors")
    base = get_peft_model(tiny_unet(), LoraConfig(r=2, target_modules=["to_q"]))
    for name in ("x", "y"):
        assert tensor_sha256(load_denoiser(tmp_path / f"{name}.safetensors", base=base)) == tensor_sha256(model)


def test_nothing_is_made_where_the_base_has_the_architecture():
    base = tiny_unet()
    assert blank_like(base, shapes(other())) is None and config_changes(base.config, shapes(other())) == {}
    assert blank_like(tiny_unconditional(), shapes(tiny_unconditional())) is None
    assert blank_like(nn.Linear(2, 2), {"conv_in.weight": (2, 9, 3, 3)}) is None


def test_what_no_field_of_the_config_widens(tmp_path):
    state = other().state_dict()
    state["conv_out.weight"] = torch.cat([state["conv_out.weight"]] * 2)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WrongBaseError, match="conv_out"):
        load_denoiser(tmp_path / "x.safetensors", base=tiny_unet())


def test_a_hostile_shape_builds_nothing_that_the_file_does_not_hold(tmp_path):
    state = other().state_dict()
    state["conv_in.weight"] = torch.zeros(0, 2**40, 3, 3)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WrongBaseError, match="conv_in"):
        load_denoiser(tmp_path / "x.safetensors", base=tiny_unet())


@pytest.mark.parametrize("to_be_filled", [True, False])
def test_comparing_names_leaves_what_other_threads_build(monkeypatch, to_be_filled):
    """A scan compares headers in threads while a model is loaded in another; accelerate's patch would reach that one."""
    seen, build = [], UNet2DConditionModel.from_config.__func__

    def slowly(cls, config, **options):
        thread = Thread(target=lambda: seen.append(nn.Linear(2, 2).weight.is_meta))
        thread.start()
        thread.join()
        return build(cls, config, **options)

    base, asked = tiny_unet(), shapes(other(in_channels=9))
    monkeypatch.setattr(UNet2DConditionModel, "from_config", classmethod(slowly))
    blank = blank_like(base, asked, to_be_filled=to_be_filled)
    assert next(blank.parameters()).is_meta and shapes(blank) == asked
    assert seen == [to_be_filled]  # True is why threads ask for the other
