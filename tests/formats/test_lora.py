"""One mathematical change in every adapter format must act as the hand-patched weights do, and leave no trace."""

import copy
from pathlib import Path

import pytest
import torch
from _tiny import ATTENTION, BOTH_LEVELS, CONV, LINEAR, OTHER, factors, patch, run, tiny_unet, write
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import (
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft.tuners.glora import GloraConfig
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import LoraNotLoadedError, NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from aiao_diffusers.formats.lora import apply_lora, check_adapter_fits


FORMATS = (
    "kohya",
    "kohya-ldm",
    "peft",
    "diffusers-metadata",
    "diffusers-down-up",
    "diffusers-lora-down",
    "comfy-ldm",
)


QUERY = f"{ATTENTION}.attn1.to_q"


BOTH = (QUERY, CONV[0])


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def patched(made: dict, factor: float, seed: int = 0) -> torch.Tensor:
    reference = tiny_unet(seed)
    patch(reference, made, factor)
    return run(reference)


def save(tmp_path: Path, state: dict[str, torch.Tensor], name: str = "x.safetensors") -> Path:
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / name)
    return tmp_path / name


def randomised(model: nn.Module, seed: int = 3) -> nn.Module:
    """peft starts B at zero; a test needs an adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(mark in name for mark in ("lora_A", "lora_B", "hada_", "lokr_")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        elif "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand(parameter.shape, generator=generator)
    return model.eval()


STEM = "lora_unet_" + QUERY.replace(".", "_")


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


class TestOracle:
    @pytest.mark.parametrize("fmt", FORMATS)
    def test_equals_patched_weights(self, unet, tmp_path, fmt):
        made = factors(unet, LINEAR + CONV + OTHER, rank=3)
        bare, expected = run(unet), patched(made, 2 / 3)
        with apply_lora(unet, write(tmp_path, fmt, made, alpha=2.0)) as loaded:
            torch.testing.assert_close(run(unet), expected, rtol=0, atol=1e-5)
        assert (expected - bare).abs().max() > 0.1
        assert loaded.modules == len(made) and not loaded.unused_keys and not loaded.warnings
        assert loaded.kind == fmt.split("-")[0].replace("comfy", "diffusers")
        assert loaded.text_encoder_keys == (1 if fmt.startswith("kohya") else 0)

    def test_old_attention_processor_keys(self, unet, tmp_path):
        made = factors(unet, LINEAR, rank=2)
        with apply_lora(unet, write(tmp_path, "diffusers-old", made, alpha=1.0)) as loaded:
            torch.testing.assert_close(run(unet), patched(made, 0.5), rtol=0, atol=1e-5)
        assert (loaded.kind, loaded.modules) == ("diffusers-old", len(LINEAR))

    @pytest.mark.slow
    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        fmt=st.sampled_from(FORMATS),
        rank=st.integers(1, 9),
        alpha=st.floats(0.125, 16, width=16),
        scale=st.floats(-2, 2, width=16).filter(lambda s: abs(s) > 0.01),
        dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    )
    def test_weights_for_any_rank_alpha_scale_and_dtype(self, tmp_path, fmt, rank, alpha, scale, dtype):
        unet = tiny_unet()
        made = factors(unet, BOTH, rank)
        rounded = {k: tuple(t.to(dtype).float() for t in pair) for k, pair in made.items()}
        reference = tiny_unet()
        patch(reference, rounded, scale * float(torch.tensor(alpha).to(dtype)) / rank if fmt != "peft" else 0)
        if fmt in ("peft", "diffusers-metadata"):
            reference = tiny_unet()
            patch(reference, rounded, scale * alpha / rank)
        before = tensor_sha256(unet)
        with apply_lora(unet, write(tmp_path / fmt, fmt, made, alpha, dtype), scale) as loaded:
            for name in BOTH:
                mine, theirs = unet.get_submodule(name).weight, reference.get_submodule(name).weight
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        assert tensor_sha256(unet) == before
        delta = sum(
            float((reference.get_submodule(n).weight - unet.get_submodule(n).weight).detach().double().square().sum())
            for n in BOTH
        )
        assert loaded.delta_norm == pytest.approx(delta**0.5, rel=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_denoiser_of_another_precision(self, tmp_path, dtype):
        unet = tiny_unet().to(dtype)
        made = factors(unet, BOTH, rank=2)
        reference = tiny_unet().to(dtype)
        patch(reference, made, 1.0)
        with apply_lora(unet, write(tmp_path, "kohya", made, alpha=2.0)):
            for name in BOTH:
                mine, theirs = unet.get_submodule(name).weight, reference.get_submodule(name).weight
                torch.testing.assert_close(mine, theirs, rtol=torch.finfo(dtype).eps, atol=1e-6)

    def test_float8_storage(self, unet, tmp_path):
        made = {k: tuple(t.to(torch.float8_e4m3fn) for t in v) for k, v in factors(unet, BOTH, 2).items()}
        exact = {k: tuple(t.float() for t in v) for k, v in made.items()}
        with apply_lora(unet, write(tmp_path, "comfy-ldm", made, 2.0, torch.float8_e4m3fn)):
            torch.testing.assert_close(run(unet), patched(exact, 1.0), rtol=0, atol=1e-5)

    def test_rank_varies_by_module(self, unet, tmp_path):
        made = factors(unet, BOTH[:1], 2) | factors(unet, BOTH[1:], 5)
        state = {}
        for name, (down, up) in made.items():
            state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
        with apply_lora(unet, save(tmp_path, state)):
            torch.testing.assert_close(run(unet), patched(made, 1.0), rtol=0, atol=1e-5)

    def test_bare_keys_without_a_prefix(self, unet, tmp_path):
        down, up = factors(unet, BOTH[:1], 2)[QUERY]
        state = {f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}
        with apply_lora(unet, save(tmp_path, state)) as loaded:
            assert loaded.modules == 1

    def test_locon_in_cp_form(self, unet, tmp_path):
        weight = unet.get_submodule(CONV[0]).weight
        out, inner, kh, kw = weight.shape
        down, up, mid = torch.randn(3, inner, 1, 1), torch.randn(out, 3, 1, 1), torch.randn(3, 3, kh, kw)
        # Independent reference: the three convolutions that the trainer runs one after the other.
        chain = nn.Sequential(
            nn.Conv2d(inner, 3, 1, bias=False),
            nn.Conv2d(3, 3, (kh, kw), padding=1, bias=False),
            nn.Conv2d(3, out, 1, bias=False),
        )
        for layer, value in zip(chain, (down, mid, up), strict=True):
            layer.weight.data = value
        stem = "lora_unet_" + CONV[0].replace(".", "_")
        state = {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.lora_mid.weight": mid,
            f"{stem}.alpha": torch.tensor(1.5),
        }
        x, conv = torch.randn(1, inner, 6, 6), unet.get_submodule(CONV[0])
        with torch.no_grad():
            expected = conv(x) + 0.5 * chain(x)
            with apply_lora(unet, save(tmp_path, state)) as loaded:
                torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)
        assert loaded.kind == "kohya"


class TestAgainstTheTrainers:
    """Files as peft and diffusers write them, and the output that peft itself computes."""

    @pytest.mark.parametrize(
        "options",
        [
            {"r": 4, "lora_alpha": 3},
            {"r": 4, "lora_alpha": 3, "use_rslora": True},
            {"r": 4, "lora_alpha": 3, "use_dora": True},
            {"r": 4, "lora_alpha": 3, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"attn1.to_q": 7, "conv1": 2}},
            {"r": 2, "rank_pattern": {f"^{QUERY}": 5}, "alpha_pattern": {r".*attn1\.to_q": 9}},
        ],
        ids=["plain", "rslora", "dora", "patterns", "regex patterns"],
    )
    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_native_peft_folder(self, unet, tmp_path, options, scale):
        config = LoraConfig(target_modules=["to_q", "to_v", "conv1"], **options)
        wrapped = randomised(get_peft_model(tiny_unet(), config))
        wrapped.save_pretrained(tmp_path)
        if scale != 1.0:
            for module in wrapped.modules():
                if hasattr(module, "set_scale"):
                    module.set_scale("default", scale)
        with apply_lora(unet, tmp_path, scale) as loaded:
            torch.testing.assert_close(run(unet), run(wrapped), rtol=0, atol=1e-5)
        assert loaded.kind == ("dora" if options.get("use_dora") else "peft")
        assert not loaded.unused_keys

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "config",
        [
            LoHaConfig(r=3, alpha=2, target_modules=["to_q", "conv1"], use_effective_conv2d=True),
            LoHaConfig(r=3, alpha=2, target_modules=["to_q", "conv1"]),
            LoKrConfig(r=2, alpha=3, target_modules=["to_q", "conv1"], decompose_both=True, decompose_factor=2),
            LoKrConfig(r=2, alpha=3, target_modules=["to_q", "conv1"], use_effective_conv2d=True),
            LoKrConfig(r=64, alpha=3, target_modules=["to_q", "conv1"]),
        ],
        ids=["loha cp", "loha", "lokr both", "lokr cp", "lokr full"],
    )
    def test_native_peft_lycoris(self, unet, tmp_path, config):
        wrapped = randomised(get_peft_model(tiny_unet(), config))
        wrapped.save_pretrained(tmp_path)
        expected = run(wrapped)
        assert (expected - run(unet)).abs().max() > 1e-3
        with apply_lora(unet, tmp_path) as loaded:
            torch.testing.assert_close(run(unet), expected, rtol=0, atol=1e-5)
        assert loaded.kind == config.peft_type.value.lower()

    @pytest.mark.parametrize(
        "config",
        [
            OFTConfig(oft_block_size=4, target_modules=["to_q", "conv_shortcut"]),
            OFTConfig(r=2, oft_block_size=0, target_modules=["to_q"], use_cayley_neumann=False),
            OFTConfig(oft_block_size=4, target_modules=["to_q", "to_k"], block_share=True, num_cayley_neumann_terms=3),
            BOFTConfig(boft_block_size=4, target_modules=["to_q", "conv1"]),
            GloraConfig(r=3, target_modules=["to_q", "linear_1"]),
            GloraConfig(target_modules=["to_q", "linear_1"], config_A_B="vector", config_C="vector"),
            GloraConfig(target_modules=["linear_1"], config_A_B="constant", config_C="none", config_D_E="none"),
            VeraConfig(r=3, target_modules=["to_q", "linear_1"]),
            LNTuningConfig(target_modules=["norm1", "conv_norm_out"]),
        ],
        ids=lambda c: c.peft_type.value,
    )
    def test_native_peft_of_other_kinds(self, unet, tmp_path, config):
        wrapped = get_peft_model(tiny_unet(), config)
        generator = torch.Generator().manual_seed(3)
        for name, parameter in wrapped.named_parameters():
            if any(mark in name for mark in ("oft_R", "boft_R", "glora_", "vera_lambda", "ln_tuning", "boft_s")):
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
        wrapped.eval().save_pretrained(tmp_path)
        expected, bare = run(wrapped), run(unet)
        wanted = dict(wrapped.merge_and_unload().named_parameters())
        assert (expected - bare).abs().max() > 1e-2
        with apply_lora(unet, tmp_path) as loaded:
            torch.testing.assert_close(run(unet), expected, rtol=0, atol=2e-5)
            for name, parameter in unet.named_parameters():
                assert (parameter - wanted[name]).norm() <= 1e-5 * wanted[name].norm(), name
        assert loaded.kind == config.peft_type.value.lower() and not loaded.unused_keys
        assert torch.equal(run(unet), bare)
        shapes = {k: tuple(v.shape) for k, v in load_file(tmp_path / "adapter_model.safetensors").items()}
        check_adapter_fits(shapes, tiny_unet().to("meta"), "x")

    def test_file_that_diffusers_saves(self, unet, tmp_path):
        trained = tiny_unet()
        trained.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k"], use_dora=True))
        randomised(trained)
        trained.save_lora_adapter(tmp_path)
        with apply_lora(unet, tmp_path) as loaded:
            torch.testing.assert_close(run(unet), run(trained), rtol=0, atol=1e-5)
        assert loaded.kind == "dora"

    def test_on_top_of_an_adapter_that_peft_holds(self, tmp_path):
        live = randomised(inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), tiny_unet()))
        made = factors(tiny_unet(), BOTH, 2)
        merged = copy.deepcopy(live)
        for name in BOTH:
            layer = merged.get_submodule(name)
            weight = getattr(layer, "base_layer", layer).weight
            down, up = made[name]
            weight.data += (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        with apply_lora(live, write(tmp_path, "kohya", made, 2.0)) as loaded:
            torch.testing.assert_close(run(live), run(merged), rtol=0, atol=1e-5)
        assert loaded.modules == 2

    @pytest.mark.parametrize(
        "config",
        [FourierFTConfig(n_frequency=3, target_modules=["to_q"]), HRAConfig(r=2, target_modules=["to_q"])],
        ids=lambda c: c.peft_type.value,
    )
    def test_kinds_that_are_not_read_are_named(self, unet, tmp_path, config):
        get_peft_model(tiny_unet(), config).save_pretrained(tmp_path)
        name = config.peft_type.value
        refused(tmp_path, unet, NotTestableError, rf"(?i)not read here: {name} of peft")
        (tmp_path / "adapter_config.json").unlink()
        refused(tmp_path / "adapter_model.safetensors", unet, NotTestableError, rf"(?i)not read here: {name} of peft")

    @pytest.mark.parametrize("role", ["lora_magnitude_vector", "dora_scale"])
    def test_a_dora_that_diffusers_converts_to_kohya_names(self, unet, tmp_path, role):
        """Its converter leaves a dot before a role that it does not know: half of each name is dotted."""
        config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"], use_dora=True)
        wrapped = randomised(get_peft_model(tiny_unet(), config))
        wrapped.save_pretrained(tmp_path)
        native = load_file(tmp_path / "adapter_model.safetensors")
        plain = {f"unet.{k.removeprefix('base_model.model.')}": v for k, v in native.items()}
        state = convert_state_dict_to_kohya(plain)
        assert any("_attn1.to_q.lora_magnitude_vector" in k for k in state)
        source = save(tmp_path, {k.replace("lora_magnitude_vector", role): v for k, v in state.items()})
        with apply_lora(unet, source) as loaded:
            torch.testing.assert_close(run(unet), run(wrapped), rtol=0, atol=1e-5)
        assert loaded.kind == "dora" and not loaded.unused_keys


class TestKohyaVariants:
    STEM = "lora_unet_" + QUERY.replace(".", "_")

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_dora_scale_by_row_and_column(self, unet, tmp_path, axis, scale):
        weight = unet.get_submodule(QUERY).weight.data.clone()
        down, up = factors(unet, BOTH[:1], 2)[QUERY]
        value = weight + 0.5 * up @ down
        magnitude = 1 + torch.rand((weight.shape[0], 1) if axis == 0 else (1, weight.shape[1]))
        full = magnitude * value / value.norm(dim=1 - axis, keepdim=True)
        state = {
            f"{self.STEM}.lora_down.weight": down,
            f"{self.STEM}.lora_up.weight": up,
            f"{self.STEM}.alpha": torch.tensor(1.0),
            f"{self.STEM}.dora_scale": magnitude,
        }
        with apply_lora(unet, save(tmp_path, state), scale) as loaded:
            torch.testing.assert_close(
                unet.get_submodule(QUERY).weight.data, weight + scale * (full - weight), rtol=1e-5, atol=1e-6
            )
        assert loaded.kind == "dora"

    def test_alpha_zero_means_rank(self, unet, tmp_path):
        made = factors(unet, BOTH, 2)
        with apply_lora(unet, write(tmp_path, "kohya", made, 0.0)):
            torch.testing.assert_close(run(unet), patched(made, 1.0), rtol=0, atol=1e-5)

    def test_full_difference_with_bias(self, unet, tmp_path):
        name = "mid_block.attentions.0.norm"
        module = unet.get_submodule(name)
        weight, bias = module.weight.data.clone(), module.bias.data.clone()
        stem = "lora_unet_" + name.replace(".", "_")
        state = {f"{stem}.diff": torch.ones_like(weight), f"{stem}.diff_b": 2 * torch.ones_like(bias)}
        with apply_lora(unet, save(tmp_path, state), 0.5) as loaded:
            assert torch.equal(module.weight, weight + 0.5) and torch.equal(module.bias, bias + 1)
        assert (loaded.kind, loaded.modules) == ("diff", 1)


class TestRestoration:
    def test_bit_for_bit_after_an_exception(self, unet, tmp_path):
        source, before = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0), tensor_sha256(unet)
        parameters = dict(unet.named_parameters())
        with pytest.raises(ZeroDivisionError), apply_lora(unet, source):
            assert tensor_sha256(unet) != before
            1 / 0  # noqa: B018
        assert tensor_sha256(unet) == before
        assert all(parameters[name] is p for name, p in unet.named_parameters())

    def test_a_body_that_overwrites_weights(self, unet, tmp_path):
        source, before = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0), tensor_sha256(unet)
        with apply_lora(unet, source):
            for name in BOTH:
                unet.get_submodule(name).weight.data.zero_()
        assert tensor_sha256(unet) == before

    def test_nested_at_several_scales_is_the_sum(self, unet, tmp_path):
        first, second = factors(unet, LINEAR, 2, seed=1), factors(unet, BOTH, 3, seed=2)
        one, two = write(tmp_path / "a", "kohya", first, 2.0), write(tmp_path / "b", "peft", second, 3.0)
        before, reference = tensor_sha256(unet), tiny_unet()
        patch(reference, first, 0.7)
        middle = run(reference)
        patch(reference, second, -0.4)
        with apply_lora(unet, one, 0.7):
            with apply_lora(unet, two, -0.4):
                torch.testing.assert_close(run(unet), run(reference), rtol=0, atol=1e-5)
            torch.testing.assert_close(run(unet), middle, rtol=0, atol=1e-5)
        assert tensor_sha256(unet) == before

    def test_under_inference_mode(self, unet, tmp_path):
        source, bare = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0), run(unet)
        with torch.inference_mode(), apply_lora(unet, source):
            pass
        assert torch.equal(run(unet), bare)

    def test_refusal_leaves_the_denoiser_alone(self, unet, tmp_path):
        made = factors(unet, BOTH, 2)
        made[CONV[0]] = (made[CONV[0]][0][:, :-1], made[CONV[0]][1])
        before = tensor_sha256(unet)
        with pytest.raises(WrongBaseError), apply_lora(unet, write(tmp_path, "kohya", made, 2.0)):
            pass
        assert tensor_sha256(unet) == before


class TestNeverAFalseSuccess:
    @pytest.mark.parametrize("fmt", FORMATS)
    def test_zero_delta(self, unet, tmp_path, fmt):
        made = {k: (down, torch.zeros_like(up)) for k, (down, up) in factors(unet, BOTH, 2).items()}
        with (
            pytest.raises(LoraNotLoadedError, match="changed 0 modules"),
            apply_lora(unet, write(tmp_path, fmt, made, 2.0)),
        ):
            pass

    def test_zero_scale_and_delta_lost_in_rounding(self, tmp_path):
        unet = tiny_unet()
        source = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0)
        with pytest.raises(LoraNotLoadedError), apply_lora(unet, source, scale=0.0):
            pass
        with pytest.raises(LoraNotLoadedError), apply_lora(unet.to(torch.bfloat16), source, scale=1e-9):
            pass

    def test_half_zero_is_counted_and_said(self, unet, tmp_path):
        made = factors(unet, BOTH, 2)
        made[QUERY] = (made[QUERY][0], torch.zeros_like(made[QUERY][1]))
        with apply_lora(unet, write(tmp_path, "kohya", made, 2.0)) as loaded:
            assert loaded.modules == 1
        assert "1 of 2 modules did not change" in loaded.warnings[0]

    def test_unknown_modules(self, unet, tmp_path):
        state = {"unet.elsewhere.lora_A.weight": torch.ones(2, 8), "unet.elsewhere.lora_B.weight": torch.ones(8, 2)}
        source = save(tmp_path, state)
        with pytest.raises(LoraNotLoadedError) as caught, apply_lora(unet, source):
            pass
        text = str(caught.value)
        assert "2 of 2 keys unused" in text and "unet.elsewhere.lora_A.weight" in text and "lora_unet_" in text

    def test_some_unknown_modules_are_a_warning(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0))
        state["lora_unet_nowhere.lora_up.weight"] = torch.ones(2, 2)
        with apply_lora(unet, save(tmp_path, state)) as loaded:
            assert loaded.unused_keys == ("lora_unet_nowhere.lora_up.weight",)
        assert "found no module" in loaded.warnings[0]

    @pytest.mark.parametrize(
        ("key", "shape", "kind"),
        [
            ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", (2, 2), "text_encoder_only"),
            ("<toy>", (1, 12), "textual_inversion"),
            ("image_proj.proj.weight", (4, 4), "ip_adapter"),
            ("control_model.input_hint_block.0.weight", (4, 4), "controlnet"),
        ],
    )
    def test_other_kinds(self, unet, tmp_path, key, shape, kind):
        source = save(tmp_path, {key: torch.ones(shape)})
        with pytest.raises(LoraNotLoadedError, match=kind), apply_lora(unet, source):
            pass

    @pytest.mark.parametrize("algorithm", ["lambda_layer", "ia3_l"])
    def test_algebra_that_is_not_known_here(self, unet, tmp_path, algorithm):
        stem = TestKohyaVariants.STEM
        source = save(tmp_path, {f"{stem}.{algorithm}": torch.ones(2, 2), f"{stem}.alpha": torch.tensor(1.0)})
        with pytest.raises(NotTestableError, match="not read here"), apply_lora(unet, source):
            pass

    def test_fused_projections_would_ignore_the_change(self, unet, tmp_path):
        source = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0)
        unet.fuse_qkv_projections()
        with pytest.raises(SuspectError, match="unfuse"), apply_lora(unet, source):
            pass


class TestBadInput:
    def test_wrong_base_names_both_shapes_and_the_likely_base(self, unet, tmp_path):
        name = f"{ATTENTION}.attn2.to_k"
        state = {f"unet.{name}.lora_A.weight": torch.ones(2, 768), f"unet.{name}.lora_B.weight": torch.ones(8, 2)}
        match = r"\[2, 768\].*\[8, 12\].*Stable Diffusion 1"
        with pytest.raises(WrongBaseError, match=match), apply_lora(unet, save(tmp_path, state)):
            pass

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_not_finite(self, unet, tmp_path, value):
        made = factors(unet, BOTH, 2)
        made[QUERY][0][0, 0] = value
        with (
            pytest.raises(NotTestableError, match="NaN or Inf"),
            apply_lora(unet, write(tmp_path, "kohya", made, 2.0)),
        ):
            pass

    def test_overflow_in_half_precision(self, tmp_path):
        unet = tiny_unet().half()
        source = write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0)
        with pytest.raises(NotTestableError, match="overflow"), apply_lora(unet, source, scale=1e7):
            pass

    @pytest.mark.parametrize("role", ["lora_up.weight", "lora_down.weight"])
    def test_half_a_pair(self, unet, tmp_path, role):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0))
        del state[f"{TestKohyaVariants.STEM}.{role}"]
        with pytest.raises(SuspectError, match="incomplete"), apply_lora(unet, save(tmp_path, state)):
            pass

    def test_one_module_twice(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0))
        state[f"unet.{QUERY}.lora_A.weight"] = torch.ones(2, 8)
        with pytest.raises(SuspectError, match="both give"), apply_lora(unet, save(tmp_path, state)):
            pass

    def test_several_files_need_a_name(self, unet, tmp_path):
        made = factors(unet, BOTH, 2)
        write(tmp_path, "kohya", made, 2.0)
        write(tmp_path, "comfy-ldm", made, 2.0)
        with (
            pytest.raises(SuspectError, match=r"comfy-ldm.safetensors, kohya.safetensors"),
            apply_lora(unet, tmp_path),
        ):
            pass
        with apply_lora(unet, tmp_path, weight_name="kohya.safetensors") as loaded:
            assert loaded.kind == "kohya"
        with pytest.raises(UnsafeFileError), apply_lora(unet, tmp_path, weight_name="../kohya.safetensors"):
            pass

    def test_an_embedding_beside_the_adapter_is_no_candidate(self, unet, tmp_path):
        write(tmp_path, "kohya", factors(unet, BOTH, 2), 2.0)
        save(tmp_path, {"<toy>": torch.ones(1, 12)}, "embedding.safetensors")
        with apply_lora(unet, tmp_path) as loaded:
            assert loaded.modules == 2

    def test_pickle(self, unet, tmp_path):
        (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"\x80\x04.")
        for source in (tmp_path, tmp_path / "pytorch_lora_weights.bin"):
            with pytest.raises(UnsafeFileError, match="pickle"), apply_lora(unet, source):
                pass


class TestHalfAnAdapter:
    @pytest.mark.parametrize(
        "key",
        [
            f"{STEM}.scalar",
            f"{STEM}.set_weight",
            "lora_unet_mid_block_attentions_0_proj_in.dora_scale",
            f"base_model.model.{QUERY}.bias",
            "base_model.model.conv_in.weight",
            "unet.conv_norm_out.weight",
        ],
    )
    def test_a_known_module_with_an_unknown_role(self, unet, tmp_path, key):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        save(tmp_path, state | {key: torch.ones(8)})
        refused(tmp_path / "x.safetensors", unet, LoraNotLoadedError, "not defined here")

    def test_a_stray_alpha_scales_nothing(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        stray = "lora_unet_mid_block_attentions_0_proj_in.alpha"
        with apply_lora(unet, save(tmp_path, state | {stray: torch.tensor(1.0)})) as loaded:
            assert loaded.modules == 2 and loaded.unused_keys == (stray,)

    def test_more_than_half_of_the_keys_elsewhere(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        for n in range(7):
            state[f"lora_unet_elsewhere_{n}.lora_up.weight"] = torch.ones(2, 2)
        # 7 of 13, for the text encoder's key does not count.
        refused(save(tmp_path, state), unet, WrongBaseError, r"7 of 13 keys \(54%\)")
        del state["lora_unet_elsewhere_0.lora_up.weight"]
        with apply_lora(unet, save(tmp_path, state, "y.safetensors")) as loaded:
            assert "6 of 12 keys (50%)" in loaded.warnings[0]


class TestScale:
    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
    def test_packed_factors_are_not_numbers(self, unet, tmp_path, dtype):
        state = {f"{STEM}.lora_down.weight": torch.ones(2, 8), f"{STEM}.lora_up.weight": torch.ones(8, 2)}
        source = save(tmp_path, {k: v.to(dtype) for k, v in state.items()})
        refused(source, unet, NotTestableError, "stored quantised")

    def test_norms_of_lycoris(self, unet, tmp_path):
        module = unet.get_submodule("mid_block.attentions.0.norm")
        weight, bias = module.weight.data.clone(), module.bias.data.clone()
        stem = "lora_unet_mid_block_attentions_0_norm"
        source = save(tmp_path, {f"{stem}.w_norm": weight + 1, f"{stem}.b_norm": bias + 2})
        with apply_lora(unet, source, 0.5) as loaded:
            assert torch.equal(module.weight, weight + 0.5 * (weight + 1))
            assert torch.equal(module.bias, bias + 0.5 * (bias + 2))
        assert loaded.modules == 1 and not loaded.warnings

    @pytest.mark.slow
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
            context = apply_lora(unet, write(tmp_path / f"{n}-{fmt}", fmt, made, 2.0), scale)
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
