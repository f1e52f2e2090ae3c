"""What other loaders pass over in silence: here each is an error, `not_testable`, or a warning in the report."""

import json
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from _tiny import ATTENTION, BOTH_LEVELS, factors, ldm_state, patch, run, tiny_unet, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import (
    LoraNotLoadedError,
    NotTestableError,
    SuspectError,
    UnsafeFileError,
    WrongBaseError,
)
from aiao_diffusers.files.safetensors_header import read_header, stream
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect
from aiao_diffusers.formats.families import likely_base
from aiao_diffusers.formats.lora import apply_lora


QUERY = f"{ATTENTION}.attn1.to_q"
STEM = "lora_unet_" + QUERY.replace(".", "_")
F8 = torch.float8_e4m3fn


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


class TestHalfAnAdapter:
    @pytest.mark.parametrize(
        "key",
        [
            f"{STEM}.scalar",
            f"{STEM}.oft_blocks",
            "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
            f"base_model.model.{QUERY}.bias",
            "base_model.model.conv_in.weight",
            "unet.conv_norm_out.weight",
        ],
    )
    def test_a_known_module_with_an_unknown_role(self, unet, tmp_path, key):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        save(tmp_path / "x.safetensors", state | {key: torch.ones(8)})
        refused(tmp_path / "x.safetensors", unet, LoraNotLoadedError, "not defined here")

    def test_a_stray_alpha_scales_nothing(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        stray = "lora_unet_mid_block_attentions_0_proj_in.alpha"
        with apply_lora(unet, save(tmp_path / "x.safetensors", state | {stray: torch.tensor(1.0)})) as loaded:
            assert loaded.modules == 2 and loaded.unused_keys == (stray,)

    def test_modules_saved_in_full_beside_the_adapter(self, unet, tmp_path):
        source = write(tmp_path, "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        edit(source / "adapter_config.json", modules_to_save=["conv_in"])
        refused(source, unet, NotTestableError, "modules_to_save")

    def test_a_dora_without_magnitudes(self, unet, tmp_path):
        source = write(tmp_path, "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        edit(source / "adapter_config.json", use_dora=True)
        refused(source, unet, NotTestableError, "2 modules have no magnitude")

    def test_more_than_half_of_the_keys_elsewhere(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        for n in range(7):
            state[f"lora_unet_elsewhere_{n}.lora_up.weight"] = torch.ones(2, 2)
        # 7 of 13, for the text encoder's key does not count.
        refused(save(tmp_path / "x.safetensors", state), unet, WrongBaseError, r"7 of 13 keys \(54%\)")
        del state["lora_unet_elsewhere_0.lora_up.weight"]
        with apply_lora(unet, save(tmp_path / "y.safetensors", state)) as loaded:
            assert "6 of 12 keys (50%)" in loaded.warnings[0]

    def test_another_generation_that_fits_in_part(self, tmp_path):
        """An XL adapter of self-attention alone: what SD 1.x has too fits, and no shape disagrees."""
        unet = tiny_unet(cross=768)
        state = {}
        for block in (0, 1):
            name = f"unet.{ATTENTION.removesuffix('0')}{block}.attn1.to_q"
            state |= {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
        match = r"looks made for Stable Diffusion XL, the base given is Stable Diffusion 1"
        refused(save(tmp_path / "x.safetensors", state), unet, WrongBaseError, match)


def edit(path: Path, drop: str | None = None, **fields: object) -> None:
    config = json.loads(path.read_text()) | fields
    config.pop(drop, None)
    path.write_text(json.dumps(config))


class TestScale:
    def test_an_alpha_that_the_config_leaves_out_is_that_of_peft(self, unet, tmp_path):
        made = factors(unet, BOTH_LEVELS, 2)
        source = write(tmp_path, "peft", made, 2.0)
        edit(
            source / "adapter_config.json",
            drop="lora_alpha",
            target_modules=["to_q", "conv1"],
            exclude_modules="^(?!(" + "|".join(BOTH_LEVELS) + ")$).*$",
        )
        theirs = PeftModel.from_pretrained(tiny_unet(), source)
        with apply_lora(unet, source):
            torch.testing.assert_close(run(unet), run(theirs), rtol=0, atol=1e-5)
        assert LoraConfig().lora_alpha == 8

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
    def test_packed_factors_are_not_numbers(self, unet, tmp_path, dtype):
        state = {f"{STEM}.lora_down.weight": torch.ones(2, 8), f"{STEM}.lora_up.weight": torch.ones(8, 2)}
        source = save(tmp_path / "x.safetensors", {k: v.to(dtype) for k, v in state.items()})
        refused(source, unet, NotTestableError, "stored quantised")

    def test_norms_of_lycoris(self, unet, tmp_path):
        module = unet.get_submodule("mid_block.attentions.0.norm")
        weight, bias = module.weight.data.clone(), module.bias.data.clone()
        stem = "lora_unet_mid_block_attentions_0_norm"
        source = save(tmp_path / "x.safetensors", {f"{stem}.w_norm": weight + 1, f"{stem}.b_norm": bias + 2})
        with apply_lora(unet, source, 0.5) as loaded:
            assert torch.equal(module.weight, weight + 0.5 * (weight + 1))
            assert torch.equal(module.bias, bias + 0.5 * (bias + 2))
        assert loaded.modules == 1 and not loaded.warnings

    @settings(
        max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        chosen=st.permutations(["kohya", "peft", "comfy-ldm", "diffusers-metadata"]),
        scales=st.lists(st.floats(-2, 2, width=16).filter(lambda s: abs(s) > 0.01), min_size=3, max_size=3),
    )
    def test_several_adapters_are_the_sum_in_any_order(self, tmp_path, chosen, scales):
        unet, reference = tiny_unet(), tiny_unet()
        before, stack = tensor_sha256(unet), []
        for n, (fmt, scale) in enumerate(zip(chosen[:3], scales, strict=True)):
            made = factors(unet, BOTH_LEVELS, n + 1, seed=n)
            patch(reference, made, scale * 2 / (n + 1))
            context = apply_lora(unet, write(tmp_path / str(n), fmt, made, 2.0), scale)
            context.__enter__()
            stack.append((context, tensor_sha256(unet)))
        for name in BOTH_LEVELS:
            mine, theirs = unet.get_submodule(name).weight, reference.get_submodule(name).weight
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        while stack:
            context, held = stack.pop()
            assert tensor_sha256(unet) == held
            context.__exit__(None, None, None)
        assert tensor_sha256(unet) == before


class TestWhichFile:
    """A verdict about another file than the one that was meant is a false one."""

    @pytest.fixture
    def pipeline(self, tmp_path, unet) -> Path:
        unet.save_pretrained(tmp_path / "unet")
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        return tmp_path

    def test_a_named_adapter_inside_a_pipeline(self, pipeline, unet):
        write(pipeline, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0)
        assert detect(pipeline).kind == "pipeline" and "kohya.safetensors" in detect(pipeline).warnings[0]
        assert detect(pipeline, "kohya.safetensors").kind == "lora"
        with apply_lora(unet, pipeline, weight_name="kohya.safetensors") as loaded:
            assert loaded.modules == 2

    def test_a_broken_bystander_is_nobodys_problem(self, pipeline):
        (pipeline / "junk.safetensors").write_bytes(b"junk")
        assert detect(pipeline).kind == "pipeline" and detect(pipeline).warnings == ()
        with pytest.raises(UnsafeFileError):
            detect(pipeline, "junk.safetensors")

    def test_adapter_folders_of_a_pipelines_parts(self, tmp_path, unet):
        write(tmp_path / "unet", "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        assert detect(tmp_path).kind == "lora"
        with apply_lora(unet, tmp_path) as loaded:
            assert loaded.kind == "peft" and loaded.modules == 2

    def test_a_repository_of_several_adapters(self, tmp_path, unet):
        for name, rank in (("first", 1), ("second", 3)):
            write(tmp_path / name, "kohya", factors(unet, BOTH_LEVELS, rank), 2.0)
        refused(tmp_path, unet, SuspectError, "first, second")
        for name, rank in (("first", 1), ("second", 3)):
            reference = tiny_unet()
            patch(reference, factors(unet, BOTH_LEVELS, rank), 2 / rank)
            with apply_lora(unet, tmp_path, weight_name=f"{name}/kohya.safetensors"):
                torch.testing.assert_close(run(unet), run(reference), rtol=0, atol=1e-5)
        for trick in ("../kohya.safetensors", "first/../second/kohya.safetensors", "/etc/passwd", "first//x"):
            refused(tmp_path, unet, UnsafeFileError, "lead out", weight_name=trick)
        (tmp_path / "away").symlink_to("/usr")
        refused(tmp_path, unet, UnsafeFileError, "link out", weight_name="away/lib")
        refused(tmp_path, unet, SuspectError, "no folder", weight_name="third/x.safetensors")

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("ip_adapter_proj_model.proj.weight", "ip_adapter"),
            ("adapter.body.0.in_conv.weight", "controlnet"),
            ("down_blocks.0.motion_modules.0.proj_in.weight", "motion_adapter"),
        ],
    )
    def test_kinds_that_are_no_fine_tune(self, tmp_path, unet, key, kind):
        source = save(tmp_path / "x.safetensors", {key: torch.ones(2, 2)})
        assert detect(source).kind == kind
        refused(source, unet, LoraNotLoadedError, kind)
        with pytest.raises(SuspectError, match=kind):
            load_denoiser(source, base=unet)


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
        pytest.importorskip("optimum.quanto")
        unet.save_pretrained(tmp_path / "plain")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers means to drop it
            config = diffusers.QuantoConfig(weights_dtype=width)
            theirs = type(unet).from_pretrained(tmp_path / "plain", quantization_config=config)
            theirs.save_pretrained(tmp_path / "packed")
        ours = load_denoiser(tmp_path / "packed")
        torch.testing.assert_close(run(ours), run(theirs), rtol=0, atol=1e-5)
        assert not torch.equal(run(ours), run(unet))  # the rounding is there

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


@pytest.mark.parametrize(
    ("key", "shape", "family"),
    [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", (4, 768), "Diffusion 1"),
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v.lora_down.weight",
            (4, 1024),
            "Diffusion 2",
        ),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", (4, 2048), "XL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", (4, 640), "XL"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (4, 1280), "XL"),
        ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.hada_w1_b", (4, 768), "Diffusion 1"),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 1536), "3 Medium"),
        ("base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", (4, 2432), "3.5 Large"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", (4, 1536), "Stable Diffusion 3"),
        ("transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight", (4, 3072), "FLUX"),
        ("transformer.single_transformer_blocks.0.proj_out.lora_A.weight", (4, 15360), "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", (4, 3072), "FLUX"),
        ("unet.conv_in.lora_A.weight", (4, 4), None),
    ],
)
def test_the_likely_base_of_an_adapter(key, shape, family):
    found = likely_base({key: shape})
    assert found is None if family is None else family in found


def test_a_file_that_shrinks_after_its_header_was_checked(tmp_path):
    path = save(tmp_path / "x.safetensors", {"a": torch.ones(4), "b": torch.ones(4)})
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UnsafeFileError, match="became shorter"):
        dict(stream(header))
    save(path, {"a": torch.ones(4), "longer": torch.ones(4)})
    with pytest.raises(UnsafeFileError, match="changed"):
        dict(stream(header))
