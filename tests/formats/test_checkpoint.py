"""Full models load whole or not at all; hostile files fail with a typed error before a tensor is read."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, ldm_state, run, tiny_unet, write
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


@pytest.fixture
def folder(tmp_path, unet) -> Path:
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


class TestFolder:
    def test_round_trip(self, unet, folder):
        model = load_denoiser(folder)
        assert tensor_sha256(model) == tensor_sha256(unet) and not model.training
        assert torch.equal(run(model), run(unet))

    def test_pipeline_folder(self, unet, tmp_path, folder):
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["x", "Evil"]}')
        assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(unet)

    def edit(self, folder: Path, **fields: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    @pytest.mark.parametrize(
        "name",
        [
            "os",
            "AutoencoderKL",
            "StableDiffusionPipeline",
            "DDPMScheduler",
            "NoSuchUNet",
            "../x",
            "_UNet",
            3,
            "Flax",
            "",
        ],
    )
    def test_class_names(self, folder, name):
        self.edit(folder, _class_name=name)
        with pytest.raises(SuspectError):
            load_denoiser(folder)

    @pytest.mark.parametrize("name", [None, "FlaxUNet2DConditionModel"])
    def test_a_class_that_torch_has_by_another_name(self, unet, folder, name):
        self.edit(folder, _class_name=name)
        model = load_denoiser(folder)
        assert tensor_sha256(model) == tensor_sha256(unet) and type(model) is type(unet)

    def test_no_class_and_no_field_of_one(self, folder):
        (folder / "config.json").write_text('{"in_channels": 4}')
        with pytest.raises(SuspectError, match="_class_name"):
            load_denoiser(folder)

    def test_steps_of_an_average_build_nothing(self, unet, folder):
        self.edit(folder, decay=0.9999, optimization_step=10**9, update_after_step=0, notes={"a": {"b": [1] * 9999}})
        assert tensor_sha256(load_denoiser(folder)) == tensor_sha256(unet)
        self.edit(folder, norm_num_groups=10**9)
        with pytest.raises(UnsafeFileError, match="norm_num_groups"):
            load_denoiser(folder)

    def test_a_class_that_folds_frames_is_not_testable(self, folder):
        self.edit(folder, _class_name="UNetMotionModel")
        with pytest.raises(NotTestableError, match="frames"):
            load_denoiser(folder)

    @pytest.mark.parametrize("change", ["missing", "extra", "renamed", "shape", "nan"])
    def test_weights_that_diffusers_would_fill_in_or_drop(self, folder, change):
        path = folder / "diffusion_pytorch_model.safetensors"
        state = {k: v.clone() for k, v in load_file(path).items()}
        first = "conv_in.weight"
        if change == "extra":
            state["more.weight"] = torch.ones(2)
        elif change == "nan":
            state[first][0] = float("nan")
        else:
            old = state.pop(first)
            state |= {"renamed": {"conv_out2.weight": old}, "shape": {first: old[:-1].clone()}}.get(change, {})
        save_file(state, path)
        with pytest.raises(NotTestableError if change == "nan" else WrongBaseError, match="weight"):
            load_denoiser(folder)

    def test_nothing_there(self, tmp_path, folder):
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        for place in (folder, tmp_path, tmp_path / "none"):
            with pytest.raises(SuspectError):
                load_denoiser(place)


class TestSingleFile:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "prefix",
        [
            *("", "unet.", "model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "diffusion_model."),
            *("model.diffusion_model.", "module.unet.", "module._orig_mod.unet.", "base_model.model.unet."),
        ],
    )
    def test_diffusers_keys_on_a_base(self, tmp_path, unet, prefix):
        other, before = tiny_unet(seed=5), tensor_sha256(unet)
        save_file({prefix + k: v for k, v in other.state_dict().items()}, tmp_path / "x.safetensors")
        assert tensor_sha256(load_denoiser(tmp_path / "x.safetensors", base=unet)) == tensor_sha256(other)
        assert tensor_sha256(unet) == before

    @pytest.mark.parametrize("extra", [False, True], ids=["unet alone", "with VAE and EMA"])
    def test_original_layout(self, tmp_path, unet, extra):
        other = tiny_unet(seed=5)
        state = ldm_state(other)
        if extra:
            vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
            state |= {f"first_stage_model.{k}": v for k, v in vae.state_dict().items()}
            state |= {"model_ema." + k.replace(".", ""): v + 1 for k, v in ldm_state(other).items()}
            # Integers of another part of the pipeline are no packing of the denoiser.
            state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(7)[None]
        save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "x.safetensors")
        model = load_denoiser(tmp_path / "x.safetensors", base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    def test_original_layout_with_a_gap(self, tmp_path, unet):
        state = ldm_state(unet)
        del state["model.diffusion_model.middle_block.1.proj_in.weight"]
        save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "x.safetensors")
        with pytest.raises(WrongBaseError):
            load_denoiser(tmp_path / "x.safetensors", base=unet)

    def test_wrong_base_and_no_base(self, tmp_path, unet):
        save_file(tiny_unet(cross=20).state_dict(), tmp_path / "x.safetensors")
        with pytest.raises(WrongBaseError, match=r"\[8, 20\].*\[8, 12\]"):
            load_denoiser(tmp_path / "x.safetensors", base=unet)
        with pytest.raises(SuspectError, match="base="):
            load_denoiser(tmp_path / "x.safetensors")

    def test_an_adapter_is_no_denoiser(self, tmp_path, unet):
        source = write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        with pytest.raises(SuspectError, match="lora"):
            load_denoiser(source, base=unet)


class TestWrappers:
    def test_inside_the_model(self, tmp_path, unet):
        """As where one block is compiled, or FSDP wraps each block."""
        other = tiny_unet(seed=5)
        state = {}
        for key, value in other.state_dict().items():
            key = key.replace("mid_block.", "mid_block._orig_mod.").replace(
                "resnets.0.", "resnets.0._fsdp_wrapped_module."
            )
            state[key] = value
        model = load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    @pytest.mark.parametrize("prefix", ["_orig_mod.model.diffusion_model.", "module.", "diffusion_model."])
    def test_around_original_keys(self, tmp_path, unet, prefix):
        other = tiny_unet(seed=5)
        state = {prefix + k.removeprefix("model.diffusion_model."): v for k, v in ldm_state(other).items()}
        state["first_stage_model.decoder.conv_in.weight"] = torch.ones(3)
        model = load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    def test_what_is_not_wrapped_belongs_to_other_models(self, tmp_path, unet):
        other = tiny_unet(seed=5)
        state = {f"module.unet.{k}": v for k, v in other.state_dict().items()} | {"logit_scale": torch.ones(())}
        model = load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    def test_two_models_under_two_wrappers(self, tmp_path, unet):
        state = {k: v + 1 for k, v in unet.state_dict().items()} | {
            f"unet.{k}": v for k, v in unet.state_dict().items()
        }
        with pytest.raises(UnsafeFileError, match="twice"):
            load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)

    def test_bases_that_are_wrapped(self, tmp_path, unet):
        other = tiny_unet(seed=5)
        path = save(tmp_path / "x.safetensors", other.state_dict())
        for base in (torch.compile(unet), nn.DataParallel(unet)):
            assert tensor_sha256(load_denoiser(path, base=base)) == tensor_sha256(other)


class TestOriginalFiles:
    def test_a_bare_denoiser(self, tmp_path, unet):
        other = tiny_unet(seed=5)
        state = {k.removeprefix("model.diffusion_model."): v for k, v in ldm_state(other).items()}
        model = load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
        assert tensor_sha256(model) == tensor_sha256(other)

    def test_a_module_that_the_converter_would_drop(self, tmp_path, unet):
        state = ldm_state(unet) | {"model.diffusion_model.input_blocks.9.0.op.weight": torch.ones(8, 8)}
        with pytest.raises(WrongBaseError, match=r"holds \d+ numbers of a denoiser"):
            load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)

    def test_averaged_weights_are_told_and_not_read(self, tmp_path, unet):
        averaged = {
            "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in ldm_state(unet).items()
        }
        both = save(tmp_path / "x.safetensors", ldm_state(unet) | averaged)
        assert f"{len(averaged)} averaged (EMA) weights" in detect(both).warnings[0]
        assert tensor_sha256(load_denoiser(both, base=unet)) == tensor_sha256(unet)
        alone = save(tmp_path / "y.safetensors", averaged)
        assert detect(alone).kind == "unknown"
        with pytest.raises(SuspectError, match="EMA"):
            load_denoiser(alone, base=unet)
