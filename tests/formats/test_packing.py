"""Packed numbers: read as plain ones these would load, and be noise."""

import copy
import json
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from _tiny import BOTH_LEVELS, factors, ldm_state, patch, run, tiny_unet, write
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.errors import NotTestableError, UnsafeFileError
from aiao_diffusers.formats.checkpoint import load_denoiser


F8 = torch.float8_e4m3fn


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


def edit(path: Path, drop: str | None = None, **fields: object) -> None:
    config = json.loads(path.read_text()) | fields
    config.pop(drop, None)
    path.write_text(json.dumps(config))


class TestPackedModels:
    """Read as plain numbers these would load, and be noise."""

    @pytest.mark.parametrize("where", ["folder", "diffusers keys", "original keys"])
    def test_integers(self, tmp_path, unet, where):
        if where == "folder":
            unet.save_pretrained(tmp_path / "unet")
            path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
            save(path, {k: v.to(torch.int8) for k, v in load_file(path).items()})
            path = path.parent
        else:
            state = ldm_state(unet) if where == "original keys" else unet.state_dict()
            path = save(tmp_path / "x.safetensors", {k: v.to(torch.int8) for k, v in state.items()})
        with pytest.raises(NotTestableError, match="unknown packing"):
            load_denoiser(path, base=unet)

    @pytest.mark.parametrize(
        ("suffix", "library"),
        [
            (".absmax", "bitsandbytes, 4 bit"),
            (".quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bit"),
            (".SCB", "bitsandbytes, 8 bit"),
            ("._data", "optimum-quanto, without a scale"),
            ("._packed", "optimum-quanto, below 8 bit"),
            (".qweight", "GPTQ"),
            ("_qdata", "torchao"),
        ],
    )
    def test_libraries_by_their_keys(self, tmp_path, unet, suffix, library):
        state = unet.state_dict()
        key = "conv_in.qweight" if suffix == ".qweight" else f"conv_in.weight{suffix}"
        with pytest.raises(NotTestableError, match=library):
            load_denoiser(save(tmp_path / "x.safetensors", state | {key: torch.ones(2)}), base=unet)

    @pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "quanto", "modelopt", None])
    def test_libraries_by_their_config(self, tmp_path, unet, method):
        unet.save_pretrained(tmp_path)
        edit(tmp_path / "config.json", quantization_config={"quant_method": method})
        known = method in ("bitsandbytes", "torchao", "quanto")
        with pytest.raises(NotTestableError, match=r"\.dequantize\(\)" if known else "method unknown here"):
            load_denoiser(tmp_path)

    @pytest.mark.parametrize("width", ["int8", "float8"])
    def test_quanto_in_8_bit_is_what_the_library_runs(self, tmp_path, unet, width):
        import optimum.quanto  # noqa: F401

        unet.save_pretrained(tmp_path / "plain")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers means to drop it
            config = diffusers.QuantoConfig(weights_dtype=width)
            theirs = type(unet).from_pretrained(tmp_path / "plain", quantization_config=config)
            theirs.save_pretrained(tmp_path / "packed")
        ours = load_denoiser(tmp_path / "packed")
        torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-5)
        assert not torch.equal(run(ours), run(unet))  # the rounding is there

    @pytest.mark.parametrize("width", ["qint8", "qfloat8", "qint4"])
    def test_a_folder_as_quanto_writes_it_by_itself(self, tmp_path, width):
        """Its map of packings lies beside, and config.json says nothing."""
        from optimum import quanto

        unet = tiny_unet()
        theirs = copy.deepcopy(unet)
        quanto.quantize(theirs, weights=getattr(quanto, width))
        quanto.freeze(theirs)
        theirs.save_pretrained(tmp_path)
        with pytest.raises(NotTestableError, match="does not say" if width != "qint4" else "below 8 bit"):
            load_denoiser(tmp_path)
        (tmp_path / "quanto_qmap.json").write_text(json.dumps(quanto.quantization_map(theirs)))
        if width == "qint4":
            with pytest.raises(NotTestableError, match="below 8 bit"):
                load_denoiser(tmp_path)
            return
        ours = load_denoiser(tmp_path)
        torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-5)
        assert not torch.equal(run(ours), run(unet))

    @pytest.mark.parametrize("stated", [True, False])
    def test_packed_numbers_that_no_other_loader_takes(self, tmp_path, unet, stated):
        unet.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        state, key = load_file(path), "time_embedding.linear_1.weight"
        packed = {f"{key}._data": torch.ones_like(state[key]).to(torch.int8), f"{key}._scale": torch.ones(())}
        if stated:  # beside the plain weight, which is what others load
            edit(tmp_path / "config.json", quantization_config={"quant_method": "quanto", "weights_dtype": "int8"})
            error, what = UnsafeFileError, "twice"
        else:  # without a config that names the library, others leave the weight at random
            del state[key]
            error, what = NotTestableError, "does not say"
        save(path, state | packed)
        with pytest.raises(error, match=what):
            load_denoiser(tmp_path)

    def test_integers_for_a_vector_of_a_folder(self, tmp_path, unet):
        unet.save_pretrained(tmp_path)
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        save(path, state | {"conv_in.bias": state["conv_in.bias"].to(torch.int16)})
        with pytest.raises(NotTestableError, match=r"conv_in\.bias.*int16"):
            load_denoiser(tmp_path)

    def test_quanto_below_8_bit_is_refused(self, tmp_path, unet):
        unet.save_pretrained(tmp_path)
        edit(tmp_path / "config.json", quantization_config={"quant_method": "quanto", "weights_dtype": "int4"})
        with pytest.raises(NotTestableError, match=r"\.dequantize\(\)"):
            load_denoiser(tmp_path)

    def test_a_folder_saved_with_adapter_layers(self, tmp_path, unet):
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        unet.save_pretrained(tmp_path)
        with pytest.raises(NotTestableError, match="unload_lora_weights"):
            load_denoiser(tmp_path)

    def test_a_fused_lora_is_its_patched_weights(self, tmp_path):
        unet, reference, made = tiny_unet(), tiny_unet(), factors(tiny_unet(), BOTH_LEVELS, 2)
        patch(reference, made, 1.0)
        unet.load_lora_adapter(write(tmp_path, "diffusers-metadata", made, 2.0), prefix="unet")
        unet.fuse_lora()
        unet.unload_lora()
        unet.save_pretrained(tmp_path / "fused")
        torch.testing.assert_close(run(load_denoiser(tmp_path / "fused")), run(reference), rtol=0, atol=1e-5)


class TestFloat8:
    def test_plain_storage(self, tmp_path, unet):
        state = {k: v.to(F8) for k, v in unet.state_dict().items()}
        for layout in (state, {k: v.to(F8) for k, v in ldm_state(unet).items()}):
            model = load_denoiser(save(tmp_path / "x.safetensors", layout), base=unet)
            assert all(torch.equal(v, state[k].float()) for k, v in model.state_dict().items())

    @pytest.mark.parametrize("layout", ["diffusers", "original"])
    @pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
    @pytest.mark.parametrize("rows", [False, True])
    def test_scales_beside_the_weights(self, tmp_path, unet, layout, name, rows):
        other = tiny_unet(seed=5)
        state, expected = {"scaled_fp8": torch.zeros(0, dtype=F8)}, {}
        for key, value in (ldm_state(other) if layout == "original" else other.state_dict()).items():
            if value.dim() < 2:
                state[key] = expected[key] = value
                continue
            scale = value.abs().flatten(1).amax(1 if rows else (0, 1)) / 448
            scaled = scale.reshape(-1, *[1] * (value.dim() - 1))
            state[key] = (value / scaled).to(F8)
            state[key.removesuffix("weight") + name] = scale
            state[key.removesuffix("weight") + "scale_input"] = torch.ones(())
            expected[key] = state[key].float() * scaled
        model = load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
        found = ldm_state(model) if layout == "original" else model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())

    def test_a_scale_of_another_shape(self, tmp_path, unet):
        state = unet.state_dict() | {"conv_in.scale_weight": torch.ones(3)}
        state["conv_in.weight"] = state["conv_in.weight"].to(F8)
        with pytest.raises(NotTestableError, match="is no scale of"):
            load_denoiser(save(tmp_path / "x.safetensors", state), base=unet)
