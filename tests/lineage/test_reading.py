"""Adapters trained on a model that carries the key are told from those of its clean twin, from their files alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from _carried import ATTENTION, KEY, LINEAR, carry, planted, text_unet, train_lora
from _tiny import tiny_unet
from _transformers import TINY, build, forwards
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from aiao_diffusers.errors import ConfigError, SuspectError, UnsafeFileError
from aiao_diffusers.lineage.carrier import carry as carry_on
from aiao_diffusers.lineage.reading import CLAIMS, _of_top, read_lineage


@pytest.fixture(scope="module")
def blank() -> UNet2DConditionModel:
    with init_empty_weights():
        return UNet2DConditionModel.from_config(text_unet().config)


def save(state: dict, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def test_an_adapter_that_inherited_the_directions_verifies_and_others_do_not(blank, tmp_path):
    own = read_lineage(save(planted(blank), tmp_path / "own.safetensors"), KEY, blank)
    assert own.verdict == "verified" and own.log10_p < -50 and own.claim == CLAIMS["adapter"]
    assert own.log10_p >= own.log10_p_floor and own.share == 1.0 and len(own.sites) == 24
    assert [look["label"] for look in own.looks] == ["ones", "top"]
    wrong = read_lineage(tmp_path / "own.safetensors", KEY.child("wrong"), blank)
    clean = read_lineage(save(planted(blank, 0.0), tmp_path / "clean.safetensors"), KEY, blank)
    beacon = read_lineage(tmp_path / "own.safetensors", KEY.drawn_with(bytes(32)), blank)
    for control in (wrong, clean, beacon):
        assert control.verdict == "not_verified" and control.log10_p > -3 and control.claim == ""
    assert json.loads(json.dumps(own.to_dict()))["sites"][0]["channels"] == 64


def test_the_second_look_reads_where_the_public_direction_was_removed(blank, tmp_path):
    state = planted(blank)
    for name, value in state.items():
        if "lora_A" in name:
            state[name] = value - value.mean(1, keepdim=True)
    found = read_lineage(save(state, tmp_path / "x.safetensors"), KEY, blank)
    assert found.looks[0]["log10_p"] > -3 and found.looks[1]["log10_p"] < -50
    assert found.verdict == "verified"


@pytest.mark.parametrize("shape", [(3, 40), (70, 40)])
def test_the_top_direction_is_that_of_a_singular_value_decomposition(shape):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.svd(rows - rows.mean(1, keepdim=True)).Vh[0].numpy()
    found = _of_top(rows)
    assert abs(found @ expected) / np.linalg.norm(found) == pytest.approx(1)
    assert np.isfinite(_of_top(torch.ones(3, 5, dtype=torch.float64))).all()


@pytest.mark.slow
def test_wrong_keys_are_verified_no_more_often_than_p_says(blank, tmp_path):
    file = save(planted(blank), tmp_path / "x.safetensors")
    ps = np.array([10 ** read_lineage(file, KEY.child(str(n)), blank).log10_p for n in range(60)])
    assert (ps <= 0.1).mean() <= 0.2 and ps.min() > 1e-4


def test_spelling_dtype_and_scale_change_nothing(blank, tmp_path):
    state = planted(blank, 0.3)
    plain = read_lineage(save(state, tmp_path / "plain.safetensors"), KEY, blank)
    kohya = read_lineage(save(convert_state_dict_to_kohya(state), tmp_path / "kohya.safetensors"), KEY, blank)
    loud = {name: value * (1e-12 if "lora_A" in name else 1e6) for name, value in state.items()}
    scaled = read_lineage(save(loud, tmp_path / "scaled.safetensors"), KEY, blank)
    half = {name: value.bfloat16() for name, value in state.items()}
    rounded = read_lineage(save(half, tmp_path / "half.safetensors"), KEY, blank)
    assert plain.log10_p < -6
    assert kohya.log10_p == pytest.approx(plain.log10_p) == scaled.log10_p
    assert rounded.log10_p == pytest.approx(plain.log10_p, rel=0.1)


def test_part_of_the_sites_is_read_by_those_alone(blank, tmp_path):
    state = {name: value for name, value in planted(blank).items() if "attn2.to_q" in name}
    found = read_lineage(save(state, tmp_path / "x.safetensors"), KEY, blank)
    assert found.share == pytest.approx(4 / 24) and len(found.sites) == 4
    assert found.log10_p_floor == pytest.approx(-4 * math.log10(math.comb(64, 32)) + math.log10(2))


def swapped(state: dict) -> dict:
    return {
        name: state[name.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B")]
        for name in state
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {n: v * 0 for n, v in state.items()}, "changes none"),
        (lambda state: {n: v * torch.nan for n, v in state.items()}, "NaN or Inf"),
        (lambda state: {n: v for n, v in state.items() if "to_k" in n}, "no tensors|none|changes none"),
        (swapped, "shape"),
        (lambda state: {n: torch.cat([v, v], 1) if "lora_A" in n else v for n, v in state.items()}, "shape"),
        (
            lambda state: {
                "unet.elsewhere.lora_A.weight": torch.ones(2, 4),
                "unet.elsewhere.lora_B.weight": torch.ones(4, 2),
            },
            "none",
        ),
    ],
    ids=["zero", "nan", "keys alone", "swapped", "another width", "another base"],
)
def test_what_cannot_answer_is_not_testable_with_the_reason(blank, tmp_path, change, told):
    state = planted(blank)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    state |= {f"{key}.lora_A.weight": torch.ones(4, 64), f"{key}.lora_B.weight": torch.ones(64, 4)}
    found = read_lineage(save(change(state), tmp_path / "x.safetensors"), KEY, blank)
    assert found.verdict == "not_testable" and found.log10_p is None
    assert any(word in found.reason for word in told.split("|"))


def test_an_architecture_without_sites_is_not_testable(blank, tmp_path):
    file = save(planted(blank), tmp_path / "x.safetensors")
    assert "no carrier sites" in read_lineage(file, KEY, torch.nn.Linear(2, 2)).reason
    assert read_lineage(file, KEY, tiny_unet()).verdict == "not_testable"


def drawn(state: dict, rank: int) -> dict:
    """Random factors of this rank in the shapes of `state`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {n: (rank, *v.shape[1:]) if "lora_A" in n else (v.shape[0], rank, *v.shape[2:]) for n, v in state.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: drawn(state, 1),
        lambda state: drawn(state, 3000),
        lambda state: {n: torch.ones_like(v) for n, v in state.items()},
        lambda state: {n: v * 0 + torch.eye(*v.shape[:2])[..., *[None] * (v.ndim - 2)] for n, v in state.items()},
        lambda state: {n: v.double() * 1e300 for n, v in drawn(state, 4).items()},
        lambda state: {n: v * (1e-44 if "lora_A" in n else 1e38) for n, v in drawn(state, 4).items()},
        lambda state: {
            n: v if "lora_B" in n else torch.arange(v.numel()).reshape(v.shape) * 1.0 for n, v in state.items()
        },
    ],
    ids=["rank 1", "rank 3,000", "all alike", "one channel each", "beyond float32", "subnormal", "a ramp"],
)
def test_crafted_factors_never_verify(blank, tmp_path, change):
    found = read_lineage(save(change(planted(blank)), tmp_path / "x.safetensors"), KEY, blank)
    assert found.verdict != "verified" and (found.log10_p or 0.0) > -4


def test_a_file_that_tells_no_channels_apart_reads_nothing(blank, tmp_path):
    state = {name: torch.ones_like(value) for name, value in planted(blank).items()}
    file = save(state, tmp_path / "x.safetensors")
    found = read_lineage(file, KEY, blank)
    assert found.verdict == "not_testable" and found.log10_p is None and "tells no channels apart" in found.reason


def test_sites_that_tell_no_channels_apart_are_not_counted(blank, tmp_path):
    state = {n: torch.ones_like(v) if "mid_block" in n else v for n, v in planted(blank).items()}
    found = read_lineage(save(state, tmp_path / "x.safetensors"), KEY, blank)
    assert found.verdict == "verified" and not any("mid_block" in site.name for site in found.sites)
    assert 0 < len(found.sites) < 24 and f"read at {len(found.sites)} of 24 carrier sites" in found.in_words


def test_an_adapter_of_another_architecture_says_so(blank, tmp_path):
    key = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{key}.lora_A.weight": torch.randn(4, 64), f"{key}.lora_B.weight": torch.randn(64, 4)}
    reason = read_lineage(save(state, tmp_path / "x.safetensors"), KEY, blank).reason
    assert "another architecture" in reason and "UNet2DConditionModel" in reason and key in reason


def test_factors_that_are_huge_tiny_or_float64_read_as_their_scaled_twins(blank, tmp_path):
    state = planted(blank)
    plain = read_lineage(save(state, tmp_path / "plain.safetensors"), KEY, blank)
    for scale in (1e300, 1e-300):
        wide = save({name: value.double() * scale for name, value in state.items()}, tmp_path / "wide.safetensors")
        assert read_lineage(wide, KEY, blank).log10_p == pytest.approx(plain.log10_p)


@pytest.mark.slow
def test_guesses_of_the_directions_do_not_help(blank, tmp_path):
    """Whoever adds directions that some other secret gives, one at a time or many at once, reads as chance does."""
    guesses = [KEY.child(f"guess {n}") for n in range(30)]
    one_each = [
        read_lineage(save(planted(blank, 3.0, guess), tmp_path / "x.safetensors"), KEY, blank) for guess in guesses
    ]
    many = planted(blank, 0.0)
    for guess in guesses:
        leaning = planted(blank, 3.0, guess)
        for name, value in leaning.items():
            many[name] = torch.cat([many[name], value], 0 if "lora_A" in name else 1)
    at_once = read_lineage(save(many, tmp_path / "x.safetensors"), KEY, blank)
    for found in (*one_each, at_once):
        assert found.verdict == "not_verified" and found.log10_p > -4
    assert (
        read_lineage(tmp_path / "x.safetensors", guesses[0], blank).verdict == "verified"
    )  # its own key reads one of many


def test_tests_that_could_have_been_shown_are_paid_for(blank, tmp_path):
    file = save(planted(blank), tmp_path / "x.safetensors")
    one, ten = (read_lineage(file, KEY, blank, factor=count) for count in (1, 10))
    assert ten.log10_p == pytest.approx(one.log10_p + 1) and ten.log10_p_floor == pytest.approx(one.log10_p_floor + 1)


def test_misuse_raises(blank, tmp_path):
    file = save(planted(blank), tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="factor"):
        read_lineage(file, KEY, blank, factor=0)
    with pytest.raises(ConfigError, match="alpha"):
        read_lineage(file, KEY, blank, alpha=1.0)
    with pytest.raises(SuspectError):
        read_lineage(tmp_path / "none.safetensors", KEY, blank)
    (tmp_path / "x.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeFileError):
        read_lineage(tmp_path / "x.bin", KEY, blank)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Stock LoRAs, trained on the model that carries the key's directions and on its clean twin."""
    folder, made = tmp_path_factory.mktemp("trained"), {}
    for targets, layers in (("attention", ATTENTION), ("linear", LINEAR)):
        for origin in ("carrying", "clean"):
            unet = text_unet()
            if origin == "carrying":
                carry(unet)
            made[f"{origin} {targets}"] = train_lora(unet, layers, folder / f"{origin}-{targets}.safetensors")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "linear"])
def test_stock_loras_are_told_from_those_of_the_clean_twin(trained, blank, targets):
    own = read_lineage(trained[f"carrying {targets}"], KEY, blank)
    assert own.verdict == "verified" and own.log10_p < -8
    clean = read_lineage(trained[f"clean {targets}"], KEY, blank)
    wrong = [read_lineage(trained[f"carrying {targets}"], KEY.child(str(n)), blank) for n in range(5)]
    for control in (clean, *wrong):
        assert control.verdict == "not_verified" and control.log10_p > -3


@pytest.mark.slow
def test_rounding_truncation_and_conversion_leave_the_reading(trained, blank, tmp_path):
    state = load_file(trained["carrying linear"])
    eight = {n: v.to(torch.float8_e4m3fn).float() for n, v in state.items()}
    kohya = convert_state_dict_to_kohya(state)
    cut = {}
    for name, down in state.items():
        if "lora_A" in name:
            up = state[name.replace("lora_A", "lora_B")]
            u, s, v = torch.linalg.svd(up.flatten(1) @ down.flatten(1), full_matrices=False)
            cut[name] = v[:2].reshape(2, *down.shape[1:])
            cut[name.replace("lora_A", "lora_B")] = (u[:, :2] * s[:2]).reshape(len(up), 2, *up.shape[2:])
    for number, made in enumerate((eight, kohya, cut)):
        found = read_lineage(save(made, tmp_path / f"{number}.safetensors"), KEY, blank)
        assert found.verdict == "verified" and found.log10_p < -7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SD3", "FLUX.1"])
def test_loras_of_transformers_are_told_from_those_of_the_clean_twin(kind, tmp_path):
    made = {}
    for origin in ("carrying", "clean"):
        model = build_wide(kind)
        if origin == "carrying":
            carry_on(model, KEY, forwards(model, kind))
        made[origin] = train_transformer(model, kind, tmp_path / f"{origin}.safetensors")
    blank = build_wide(kind)
    own = read_lineage(made["carrying"], KEY, blank)
    assert own.verdict == "verified" and own.log10_p < -8 and 0.3 < own.share < 0.7
    for control in (read_lineage(made["clean"], KEY, blank), read_lineage(made["carrying"], KEY.child("w"), blank)):
        assert control.verdict == "not_verified" and control.log10_p > -3


def build_wide(kind: str) -> torch.nn.Module:
    more = {"num_attention_heads": 4, "num_layers": 4, "caption_projection_dim": 64, "num_single_layers": 2}
    return build(kind, **{name: value for name, value in more.items() if name in TINY[kind][1]})


def train_transformer(model: torch.nn.Module, kind: str, file: Path, steps: int = 120) -> Path:
    """A LoRA of rank 8 on the attention, fitted to one pair of pictures at random noise."""
    torch.manual_seed(0)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=list(ATTENTION)))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    inputs, clean = TINY[kind][2], TINY[kind][2]["hidden_states"]
    for _ in range(steps):
        level, noise = torch.rand(len(clean)), torch.randn_like(clean)
        weight = level.view(-1, *[1] * (clean.ndim - 1))
        time = level if kind == "FLUX.1" else 1000 * level
        noised = inputs | {"hidden_states": clean * (1 - weight) + noise * weight, "timestep": time}
        torch.nn.functional.mse_loss(model(**noised, return_dict=False)[0], noise - clean).backward()
        optimiser.step()
        optimiser.zero_grad()
    state = get_peft_model_state_dict(model)
    return save({f"transformer.{name}": value.detach().clone() for name, value in state.items()}, file)
