"""Every key of a module that the denoiser has acts, or the file is refused: half an adapter is none."""

from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, CONV, LINEAR, factors, run, tiny_unet, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import AIAOError, NotTestableError
from aiao_diffusers.formats.lora import apply_lora


ROLES = (
    *("lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "lora_B.bias"),
    *("lora_A.bias", "lora.up.weight", "lora_linear_layer.down.weight", "lora_magnitude_vector", "dora_scale"),
    *("diff", "diff_b", "w_norm", "b_norm", "hada_w1_a", "hada_t1", "lokr_w1", "lokr_w2_b", "lokr_t2", "oft_blocks"),
    *("rescale", "oft_R.weight", "boft_R", "boft_s", "vera_lambda_b", "glora_A.X", "glora_E.zeros", "a1.weight"),
    *("b2.weight", "bm.weight", "ln_tuning_layers.weight", "ln_tuning_layers.bias", "ia3_l", "on_input", "set_weight"),
    *("reshape_weight", "scalar", "bias", "weight", "hra_u", "fourierft_spectrum", "lambda_layer", "delta"),
    *("processor.weight", "oft_blocks.0", "lora_up.0.weight", "default.weight"),
)
SPELLINGS = (
    lambda name: "lora_unet_" + name.replace(".", "_"),
    lambda name: "lora_unet_" + name.replace(".", "_", 4),
    lambda name: "lycoris_" + name.replace(".", "_"),
    lambda name: f"unet.{name}",
    lambda name: f"base_model.model.unet.{name}",
    lambda name: f"module._orig_mod.diffusion_model.{name}",
)


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


class TestHalfAnAdapter:
    @pytest.mark.slow
    @settings(
        max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        role=st.sampled_from(ROLES) | st.from_regex(r"[a-z_]{1,12}(\.[a-z]{1,6})?", fullmatch=True),
        spell=st.sampled_from(SPELLINGS),
        module=st.sampled_from((*BOTH_LEVELS, LINEAR[1], LINEAR[2])),
        shape=st.sampled_from([(8,), (8, 8), (2, 2), (1, 1), (2, 2, 2), (8, 1)]),
    )
    def test_a_key_of_a_known_module_acts_or_is_refused(self, tmp_path, role, spell, module, shape):
        unet = tiny_unet()
        source = write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0)
        state, before = load_file(source), tensor_sha256(unet)
        with apply_lora(unet, source):
            without = tensor_sha256(unet)
        state[f"{spell(module)}.{role}"] = torch.full(shape, 0.5)
        try:
            with apply_lora(unet, save(tmp_path / "x.safetensors", state)) as loaded:
                acts = tensor_sha256(unet) != without
        except AIAOError:
            pass
        else:
            stray = role == "alpha" or role.endswith(".alpha")
            assert stray or (acts and not loaded.unused_keys)
        assert tensor_sha256(unet) == before

    def test_a_bias_on_layers_that_have_none(self, unet, tmp_path):
        """peft warns that it may not be merged; its forward adds it all the same."""
        config = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k"], lora_bias=True)
        wrapped = get_peft_model(tiny_unet(), config)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.full_like(parameter, 0.3)
        wrapped.save_pretrained(tmp_path)
        assert (run(wrapped.eval()) - run(unet)).abs().max() > 0.1
        before = tensor_sha256(unet)
        with (
            pytest.raises(NotTestableError, match=r"lora_B.bias' gives .* none there to merge"),
            apply_lora(unet, tmp_path),
        ):
            pass
        assert tensor_sha256(unet) == before

    def test_the_same_on_layers_that_have_one(self, unet, tmp_path):
        config = LoraConfig(r=2, lora_alpha=3, target_modules=["conv1", "linear_1"], lora_bias=True)
        wrapped = get_peft_model(tiny_unet(), config)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.full_like(parameter, 0.3)
        wrapped.save_pretrained(tmp_path)
        with apply_lora(unet, tmp_path) as loaded:
            torch.testing.assert_close(run(unet), run(wrapped.eval()), rtol=0, atol=1e-5)
        assert not loaded.unused_keys

    def test_a_difference_of_zero_needs_no_bias(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        stem = "lora_unet_" + BOTH_LEVELS[0].replace(".", "_")
        state[f"{stem}.diff_b"] = torch.zeros(8)
        with apply_lora(unet, save(tmp_path / "x.safetensors", state)) as loaded:
            assert loaded.modules == 2 and not loaded.unused_keys

    def test_a_vera_whose_projections_are_not_in_the_file(self, unet, tmp_path):
        stem = f"base_model.model.{BOTH_LEVELS[0]}.vera_lambda"
        source = save(tmp_path / "x.safetensors", {f"{stem}_b": torch.ones(8), f"{stem}_d": torch.ones(2)})
        with pytest.raises(NotTestableError, match="without its projections"), apply_lora(unet, source):
            pass


class TestNames:
    @pytest.mark.parametrize("prefix", ["_orig_mod.", "module.unet.", "diffusion_model._fsdp_wrapped_module.", ""])
    def test_wrappers_around_the_denoiser(self, unet, tmp_path, prefix):
        made = factors(unet, (LINEAR[0], CONV[0]), 2)
        state = {}
        for name, (down, up) in made.items():
            state |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
        plain = write(tmp_path, "kohya", made, 2.0)
        with apply_lora(unet, plain):
            wanted = tensor_sha256(unet)
        with apply_lora(unet, save(tmp_path / "x.safetensors", state)) as loaded:
            assert tensor_sha256(unet) == wanted and not loaded.unused_keys

    def test_kohya_names_of_a_compiled_module(self, unet, tmp_path):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        state = {k.replace("lora_unet_", "lora_unet__orig_mod_"): v for k, v in state.items()}
        with apply_lora(unet, save(tmp_path / "x.safetensors", state)) as loaded:
            assert loaded.modules == 2 and not loaded.unused_keys

    @pytest.mark.parametrize(
        "prefix",
        ["text_encoders.clip_l.transformer.", "clip_g.", "te1.", "lora_prior_te_", "conditioner.embedders.1."],
    )
    def test_many_keys_of_text_encoders_are_of_no_other_base(self, unet, tmp_path, prefix):
        state = load_file(write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0))
        for n in range(40):
            for role in ("lora_up", "lora_down"):
                state[f"{prefix}text_model.encoder.layers.{n}.self_attn.q_proj.{role}.weight"] = torch.ones(2, 2)
        with apply_lora(unet, save(tmp_path / "x.safetensors", state)) as loaded:
            assert loaded.text_encoder_keys == 81 and loaded.modules == 2 and not loaded.warnings
