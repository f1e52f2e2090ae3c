"""Attacks do what they are named after, on a miniature denoiser in a real pipeline."""

import copy
from pathlib import Path

import pytest
import torch
from _tiny import run, tiny_context, tiny_unet

from aiao_diffusers.bench.attacks.few_steps import consistent, picture
from aiao_diffusers.bench.attacks.training import subject_and_prior
from aiao_diffusers.bench.attacks.weights import matrices
from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
from aiao_diffusers.bench.registry import ATTACKS
from aiao_diffusers.denoiser.price import measure_price
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.errors import ConfigError


@pytest.fixture
def context(tmp_path):
    return tiny_context(tmp_path)


def attacked(context, name, denoiser=None, **hyper):
    denoiser = tiny_unet(1) if denoiser is None else denoiser
    before = {n: v.clone() for n, v in context.base.state_dict().items()}
    after = ATTACKS[name].run(copy.deepcopy(denoiser), context, **hyper)
    assert all(
        torch.equal(v, before[n]) for n, v in context.base.state_dict().items()
    )  # the clean twin is not touched
    return after


def same(a, b, **tolerance):
    return all(torch.allclose(v, b.state_dict()[n], **tolerance) for n, v in a.state_dict().items())


def test_none(context):
    assert same(attacked(context, "none"), tiny_unet(1), rtol=0, atol=0)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_quantise(context, bits):
    for layer, before in zip(matrices(attacked(context, "quantise", bits=bits)), matrices(tiny_unet(1)), strict=True):
        rows, wanted = layer.weight.flatten(1), before.weight.flatten(1)
        step = wanted.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert all(len(row.unique()) <= 2**bits - 1 for row in rows)
        assert ((rows - wanted).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast(context, dtype):
    after = attacked(context, "cast", dtype=dtype)
    assert not same(after, tiny_unet(1), rtol=0, atol=0) and same(after, tiny_unet(1), rtol=1e-2, atol=1e-3)


def test_prune(context):
    for layer in matrices(attacked(context, "prune", amount=0.5)):
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.5, abs=1 / layer.weight.numel())
    for layer in matrices(attacked(context, "prune", amount=0.25, structured=True)):
        dead = (layer.weight.flatten(1) == 0).all(1).sum().item()
        assert dead == round(0.25 * len(layer.weight))


def test_noise(context):
    after, before = attacked(context, "noise", std=0.2).state_dict(), tiny_unet(1).state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    ratio = (after[name] - before[name]).std() / before[name].std()
    assert ratio.item() == pytest.approx(0.2, rel=0.1)
    assert same(attacked(context, "noise"), attacked(context, "noise"), rtol=0, atol=0)  # the seed decides


def test_svd(context):
    for layer, before in zip(matrices(attacked(context, "svd", keep=0.5)), matrices(tiny_unet(1)), strict=True):
        flat = layer.weight.flatten(1)
        assert torch.linalg.matrix_rank(flat, rtol=1e-4) <= max(1, round(0.5 * min(flat.shape)))
        assert torch.linalg.matrix_rank(before.weight.flatten(1), rtol=1e-4) > 1 or min(flat.shape) == 1


def test_reinit_changes_its_block_alone(context):
    after = attacked(context, "reinit", block="mid_block")
    before = tiny_unet(1).state_dict()
    changed = {
        name.split(".")[0] for name, value in after.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {"mid_block"}


@pytest.mark.parametrize("name", ["merge", "slerp"])
def test_merges_end_at_both_models(context, name):
    assert same(attacked(context, name, weight=1.0, other="base"), tiny_unet(1), rtol=1e-4, atol=1e-5)
    assert same(attacked(context, name, weight=0.0, other="base"), context.base, rtol=1e-4, atol=1e-5)


def test_merge_is_linear_and_slerp_keeps_length(context):
    middle = attacked(context, "merge", weight=0.25, other="base").state_dict()
    name = "mid_block.resnets.0.conv1.weight"
    a, b = tiny_unet(1).state_dict()[name], context.base.state_dict()[name]
    assert torch.allclose(middle[name], 0.25 * a + 0.75 * b, atol=1e-6)
    arc = attacked(context, "slerp", weight=0.5, other="base").state_dict()[name]
    assert arc.norm().item() == pytest.approx((a.norm() + b.norm()).item() / 2, rel=0.02)
    assert middle[name].norm() < arc.norm()


def test_other_fine_tune_is_made_once(context):
    attacked(context, "merge", other="finetune", steps=2, lr=1e-2)
    files = list(context.folder.glob("partner-*.safetensors"))
    stamp = files[0].stat().st_mtime_ns
    first = attacked(context, "ties", density=1.0, steps=2, lr=1e-2)
    assert len(files) == 1 and files[0].stat().st_mtime_ns == stamp
    assert not same(first, tiny_unet(1), atol=1e-6)


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("finetune", {"steps": 2, "lr": 1e-3}),
        ("finetune", {"steps": 2, "lr": 1e-3, "ema": 0.9}),
        ("sequential", {"steps": 1, "lr": 1e-3}),
        ("lora", {"steps": 2, "rank": 2}),
        ("lora", {"steps": 2, "rank": 2, "count": 2}),
        ("distil", {"steps": 2}),
        ("distil", {"steps": 2, "student": "fresh"}),
        ("lcm", {"steps": 2, "lr": 1e-3}),
        ("invariance", {"steps": 2}),
        ("probing", {"steps": 2, "probes": 4, "directions": 2}),
        ("inversion", {"steps": 2, "starts": 4, "ascent": 2}),
        ("targeted", {"steps": 2, "guess": 2}),
    ],
)
def test_training_attacks_change_finite_weights_and_repeat(context, name, hyper):
    after = attacked(context, name, batch_size=2, **hyper)
    assert not same(after, tiny_unet(1), rtol=0, atol=0)
    assert all(torch.isfinite(value).all() for value in after.state_dict().values())
    assert set(after.state_dict()) == set(tiny_unet(1).state_dict())  # no adapter left on it
    assert same(after, attacked(context, name, batch_size=2, **hyper), rtol=0, atol=1e-6)


def test_consistency_distillation_brings_far_and_near_predictions_together(context):
    """What it is for: two points of one trajectory should map to the same picture."""
    config = dict(context.scheduler.config)
    powers = noise_schedule(config).alphas_cumprod

    def disagreement(denoiser):
        x = context.data.latents
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        late, early = torch.full((len(x),), 600), torch.full((len(x),), 580)
        keywords = context.data.keywords()
        with torch.no_grad():
            noised = noise_schedule(config).add_noise(x, noise, late)
            told = tiny_unet(1)(noised, late, **keywords).sample
            jumped = powers[580].sqrt() * picture(noised, told, powers[late]) + (1 - powers[580]).sqrt() * told
            near = consistent(denoiser, jumped, early, noise_schedule(config), keywords)
            far = consistent(denoiser, noised, late, noise_schedule(config), keywords)
        return (near - far).square().mean().item()

    after = attacked(context, "lcm", steps=60, lr=3e-3, batch_size=4)
    assert disagreement(after) < 0.7 * disagreement(tiny_unet(1))


@pytest.mark.parametrize("name, hyper", [("dreambooth", {"lr": 1e-4}), ("dreambooth_lora", {"lr": 1e-3, "rank": 4})])
def test_dreambooth_binds_a_rare_word_to_its_subject(name, hyper, tmp_path):
    """The example's own model: a subject needs prompts, and pictures of the model itself."""
    places = (Path(__file__).parents[3] / "examples" / "emoji_diffusion",)
    pipe = open_pipe("base", places)
    data = open_data(pipe, "latents/twemoji.safetensors", places)
    context = AttackContext(pipe, data, data, 0, tmp_path, places)
    subject = subject_and_prior(context.base, context, 5, 8)
    subject = subject.take(torch.arange(8))  # the other half is the prior
    assert torch.equal(subject.latents[0], subject.latents[5]) and len(set(subject.latents[:, 0, 0, 0].tolist())) == 5
    after = attacked(context, name, context.base, steps=16, prior=8, **hyper)
    assert set(after.state_dict()) == set(context.base.state_dict())  # no adapter left on it
    losses = [
        measure_price(context.base, after, subject, context.scheduler, samples=64)[k] for k in ("loss", "loss_marked")
    ]
    assert losses[1] < 0.98 * losses[0], losses


def test_a_disguise_keeps_what_the_model_predicts(context):
    hidden = attacked(context, "disguise")
    assert not same(hidden, tiny_unet(1), atol=1e-3)
    assert torch.allclose(run(hidden), run(tiny_unet(1)), atol=1e-3)


def test_lora_scale_zero_is_the_model_itself(context):
    assert same(attacked(context, "lora", steps=2, rank=2, batch_size=2, scale=0.0), tiny_unet(1), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("prune", {"amount": 1.0}),
        ("quantise", {"bits": 1}),
        ("svd", {"keep": 0.0}),
        ("cast", {"dtype": "int7"}),
        ("reinit", {"block": "no_such_block"}),
        ("reinit", {"block": "conv_act"}),
        ("merge", {"other": "stranger"}),
    ],
)
def test_impossible_strengths_are_refused(context, name, hyper):
    with pytest.raises(ConfigError):
        attacked(context, name, **hyper)
