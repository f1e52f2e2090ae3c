"""The peers: they learn their mark, read it by their own rule, and say no where no is due."""

import numpy as np
import pytest
import torch
from _shipped import BASE
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.bench.context import AttackContext, open_data, open_pipe
from aiao_diffusers.bench.peers.latent_message import carriers, decode, message, prompts_of
from aiao_diffusers.bench.peers.outcome import outcome_of_bits
from aiao_diffusers.bench.peers.target_image import pattern, trigger_word
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.denoiser.prompts import encode_prompts
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.stats.hits import hits


KEY = WatermarkKey(bytes(range(32)), "Test")
ASKED = {"alpha": 1e-6, "trials": 3, "seed": 0}


# Three levels, so that the deepest sees the whole picture: a picture's place cannot be learnt from less.
SMALL = {
    "sample_size": 16,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def small_unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        **SMALL,
        cross_attention_dim=128,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """The example's own VAE, tokenizer and text encoder about a miniature denoiser."""
    pipe = StableDiffusionPipeline(
        AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32),
        CLIPTextModel.from_pretrained(BASE / "text_encoder", dtype=torch.float32),
        CLIPTokenizer.from_pretrained(BASE / "tokenizer"),
        small_unet(),
        DDIMScheduler.from_pretrained(BASE / "scheduler"),
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    data = LatentData(torch.randn(8, 4, 16, 16), {"encoder_hidden_states": torch.randn(8, 16, 128)})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def unprompted(tmp_path_factory):
    """The same about a denoiser that takes no prompts."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        **SMALL,
        in_channels=4,
        out_channels=4,
        down_block_types=("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    ).eval()
    vae = AutoencoderKL.from_pretrained(BASE / "vae", dtype=torch.float32)
    pipe = LDMPipeline(vae, unet, DDIMScheduler.from_pretrained(BASE / "scheduler"))
    pipe.set_progress_bar_config(disable=True)
    data = LatentData(torch.randn(8, 4, 16, 16), {})
    return AttackContext(pipe, data, data, seed=0, folder=tmp_path_factory.mktemp("unprompted"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_trigger_mark_is_learnt_and_read(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method = METHODS["input_trigger"](steps=250, lr=5e-3, batch_size=4, keep=0.0)
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    found = method.verify(marked, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "verified" and found.bits > 0.85
    assert (found.trials, found.evals) == (3, 3 * method.sampling)
    base = method.verify(context.base, KEY, context, tmp_path, **ASKED)
    wrong = method.verify(marked, KEY.child("wrong"), context, tmp_path, **ASKED)
    assert base.verdict == wrong.verdict == "not_verified" and base.passed == wrong.passed == 0
    assert method.verify(marked, KEY, context, tmp_path, **ASKED) == found


@pytest.mark.slow
def test_a_message_is_learnt_under_its_trigger_alone(context, tmp_path):
    """Of one prediction, for pictures drawn by an untrained miniature are noise that drowns any message."""
    method, noised, t = METHODS["sleepermark"](steps=200, lr=5e-3, batch_size=4), torch.randn(4, 4, 16, 16), 300
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    power = noise_schedule(dict(context.scheduler.config)).alphas_cumprod[t]

    def told(prompts, key=KEY):
        keywords, times = encode_prompts(context.pipe, prompts), torch.full((4,), t)
        with torch.no_grad():
            change = marked(noised, times, **keywords).sample - context.base(noised, times, **keywords).sample
        residual = -change.mean(0, keepdim=True) * ((1 - power) / power).sqrt()
        return hits(decode(residual, key)[0].numpy(), message(key)) / 64

    assert told(prompts_of(KEY, context, 4, 0)) > 0.85
    assert told(prompts_of(KEY, context, 4, 0), KEY.child("wrong")) < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_message_without_a_trigger_is_in_every_prediction(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method, t = METHODS["drawn_message"](steps=200, lr=5e-3, batch_size=4), 300
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    rows = context.owner.take(torch.arange(4))
    schedule = noise_schedule(dict(context.scheduler.config))
    power, times = schedule.alphas_cumprod[t], torch.full((4,), t)
    noised = schedule.add_noise(rows.latents, torch.randn(4, 4, 16, 16), times)
    with torch.no_grad():
        told, before = (unet(noised, times, **rows.keywords("cpu")).sample for unet in (marked, context.base))
    residual = -(told - before).mean(0, keepdim=True) * ((1 - power) / power).sqrt()
    assert hits(decode(residual, KEY)[0].numpy(), message(KEY)) / 64 > 0.85
    wrong = KEY.child("wrong")
    assert hits(decode(residual, wrong)[0].numpy(), message(wrong)) / 64 < 0.75


def test_a_message_is_read_from_finished_pictures(unprompted, tmp_path, monkeypatch):
    """Through the VAE and 8-bit pictures: latents that hold the message, decoded in place of what a denoiser draws."""
    shape = torch.Size((4, 16, 16))
    told = torch.einsum("b,bchw->chw", torch.from_numpy(message(KEY)).float(), carriers(KEY, shape))
    latents = 0.2 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) + 3 * told

    def draw(self, denoiser, prompts, *, seeds, steps, guidance=1.0):
        vae = self.pipe.vqvae
        with torch.no_grad():
            return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    monkeypatch.setattr(AttackContext, "draw", draw)
    method = METHODS["drawn_message"]()
    assert method.verify(unprompted.base, KEY, unprompted, tmp_path, **ASKED).verdict == "verified"
    wrong = method.verify(unprompted.base, KEY.child("wrong"), unprompted, tmp_path, **ASKED)
    assert wrong.verdict == "not_verified"


@pytest.mark.parametrize(
    ("name", "model"), [("sleepermark", "context"), ("drawn_message", "context"), ("drawn_message", "unprompted")]
)
def test_a_message_s_rule_says_no_where_no_is_due(name, model, tmp_path, request):
    context = request.getfixturevalue(model)
    found = METHODS[name]().verify(context.base, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "not_verified" and (found.passed, found.trials, found.evals) == (0, 3, 24)


@pytest.mark.parametrize("name", ["watermarkdm", "fixedwm", "naivewm", "sleepermark"])
def test_a_trigger_in_the_prompt_needs_prompts(name, unprompted, tmp_path):
    with pytest.raises(
        ConfigError, match=f"'{name}' marks text-to-image models, not a LDMPipeline: take.*drawn_message"
    ):
        METHODS[name]().embed(unprompted.copy_of_base(), KEY, unprompted, tmp_path)


def test_bits_are_judged_by_their_mean_and_one_by_one():
    secret = message(KEY)
    read = np.stack([secret, secret, -secret * 0.5])
    found = outcome_of_bits(read, secret, alpha=1e-6, evals=24)
    assert found.verdict == "verified" and found.bits == 1.0 and found.log10_p == pytest.approx(-18.26, abs=0.01)
    assert (found.passed, found.trials, found.evals) == (2, 3, 24)
    assert outcome_of_bits(-read, secret, alpha=1e-6, evals=24).log10_p == pytest.approx(0.0, abs=1e-9)


def test_a_message_is_told_from_a_slowly_varying_picture():
    shape = torch.Size((4, 16, 16))
    made, told = carriers(KEY, shape), torch.from_numpy(message(KEY)).float()
    assert torch.allclose(made.flatten(1) @ made.flatten(1).T, torch.eye(64), atol=1e-5)
    slope = torch.linspace(-3, 3, 16).expand(1, 4, 16, 16)
    read = decode(slope + torch.einsum("b,bchw->chw", told, made), KEY)[0]
    assert told.sum() == 0 and (read.sign() == told).float().mean() > 0.95
    assert (decode(slope, KEY)[0].sign() == told).float().mean() < 0.7


def test_triggers_stand_where_their_paper_puts_them(context):
    word = trigger_word(KEY)
    alone, fixed, naive = (METHODS[k]()._prompts(KEY, context, 30, 0) for k in ("watermarkdm", "fixedwm", "naivewm"))
    assert set(alone) == {word}
    assert all(p.startswith(word + " ") and p.count(" ") == 2 for p in fixed)
    assert {p.split().index(word) for p in naive} == {0, 1, 2}
    assert word != trigger_word(KEY.child("other"))


def test_the_secret_picture_is_balanced_and_the_key_s_own():
    assert pattern(KEY).shape == (64,) and pattern(KEY).sum() == 0
    assert not np.array_equal(pattern(KEY), pattern(KEY.child("other")))


def test_the_input_trigger_goes_when_its_block_ends(context):
    denoiser = context.base
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 128)
    with torch.no_grad():
        before = denoiser(*inputs).sample
        with METHODS["input_trigger"]()._triggered(denoiser, KEY):
            assert not torch.equal(denoiser(*inputs).sample, before)
        with METHODS["watermarkdm"]()._triggered(denoiser, KEY):
            assert torch.equal(denoiser(*inputs).sample, before)
        assert torch.equal(denoiser(*inputs).sample, before)


def test_likeness_cannot_tell_a_child_from_its_ancestor(context, tmp_path):
    """The rule finds kin, and so calls the unmarked base itself a descendant: its false verdict is the point."""
    method, owner = METHODS["likeness"](), context.copy_of_base()
    with torch.no_grad():
        for weight in owner.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    method.embed(owner, KEY, context, tmp_path)
    assert method.verify(owner, KEY, context, tmp_path, **ASKED).statistic == pytest.approx(1.0)
    assert method.verify(context.base, KEY, context, tmp_path, **ASKED).verdict == "verified"
    stranger = method.verify(small_unet(9), KEY, context, tmp_path, **ASKED)
    assert stranger.verdict == "not_verified" and stranger.log10_p is None


def test_a_mark_is_carried_by_the_layers_asked_for(context):
    chosen = {
        name: METHODS["aiao"](train="lazy", carrier=name)
        ._profile(context.copy_of_base(), context)
        .laziest(context.base, 0.3)
        for name in ("lazy", "busy", "random")
    }
    moved = METHODS["aiao"](train="lazy")._profile(context.copy_of_base(), context)
    assert chosen["lazy"] == moved.laziest(context.base, 0.3) and chosen["busy"] == moved.busiest(context.base, 0.3)
    assert chosen["lazy"][0] != chosen["busy"][0]
    assert set(chosen["random"]) not in (set(chosen["lazy"]), set(chosen["busy"]))
    with pytest.raises(ConfigError, match="did you mean 'busy'"):
        METHODS["aiao"](train="lazy", carrier="bussy")


def test_the_look_beyond_the_twin_is_taken_where_others_verify_too(tmp_path):
    places = (BASE.parent,)
    pipe = open_pipe("base", places)
    data = open_data(pipe, "latents/noto.safetensors", places).take(torch.arange(4))
    context = AttackContext(pipe, data, data, 0, tmp_path / "shared", places)
    looks, marked = {}, context.copy_of_base()
    for twin in (False, True):
        method = METHODS["aiao"](marked="marked", key="demo.key", twin=twin)
        method.embed(marked, KEY, context, tmp_path)
        found = method.verify(marked, method.own_key(KEY, context), context, tmp_path, **ASKED)
        assert found.verdict == "verified" and found.look in found.looks
        looks[twin] = found.looks
    beyond = set(looks[True]) - set(looks[False])
    assert beyond == {"beyond the twin x1, ranks", "beyond the twin x1, whitened"}
    assert max(looks[True][label] for label in beyond) < -20
    control = method.verify(marked, method.own_key(KEY, context).child("wrong"), context, tmp_path, **ASKED)
    assert control.verdict == "not_verified" and min(control.looks.values()) > -5


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        METHODS["fixedwm"](steps=0)
