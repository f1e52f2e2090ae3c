"""A mark in closed form: what it changes, how far it shifts the features, and where it cannot be made."""

import pytest
import torch
from _tiny import tiny_unconditional, tiny_unet
from diffusers import DDIMScheduler

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed
from aiao_diffusers.denoiser.call import CallInputs
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.embedding.closed_form import writer
from aiao_diffusers.errors import ConfigError, TrainingError
from aiao_diffusers.mark.reading import read_subpath
from aiao_diffusers.mark.selection import choose
from aiao_diffusers.mark.subpath import sub_path


KEY = WatermarkKey(bytes(range(32)), "Demo")


SCHEDULER = DDIMScheduler(clip_sample=False, steps_offset=1)


CONFIG = EmbedConfig(
    steps=0, edit=1.0, in_sites=2, out_sites=2, kept_share=1.0, max_price=None, bank_size=4, lineage=0
)


def data():
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(16, 5, 12, generator=generator)
    return LatentData(torch.randn(16, 4, 8, 8, generator=generator), {"encoder_hidden_states": text})


def marked(**changes):
    unet = tiny_unet()
    return unet, embed(unet, KEY, data(), EmbedConfig(**CONFIG.__dict__ | changes), scheduler=SCHEDULER)


@pytest.fixture(scope="module")
def edited():
    return marked()


@pytest.mark.slow
def test_only_the_layers_before_the_out_sites_change_and_by_rank_one(edited):
    unet, report = edited
    outs = choose(trace_on(unet, data()), KEY, 2, 2)[1]
    wanted = {id(writer(unet, site.name)[0]) for site in outs}
    before, changed = dict(tiny_unet().named_parameters()), set()
    for name, p in unet.named_parameters():
        if not torch.equal(p, before[name]):
            changed.add(id(unet.get_submodule(name.rpartition(".")[0])))
            if p.ndim > 1:
                values = torch.linalg.svdvals((p - before[name]).flatten(1))
                assert values[1] < 1e-4 * values[0]
    assert changed == wanted and len(wanted) == 2
    assert report.history == [] and report.to_dict()["steps"] == 0 and report.plot() is not None


@pytest.mark.slow
def test_the_response_follows_the_pattern_and_grows_with_the_strength(edited):
    def agreement(unet):
        ins, outs = choose(trace_on(unet, data()), KEY, 2, 2)
        rows = data()
        with torch.no_grad(), instrument(unet, [s.name for s in (*ins, *outs)]) as instrumented:
            t = torch.full((16,), 400)
            read = read_subpath(
                instrumented, KEY, sub_path(ins, outs), 1.0, CallInputs(rows.latents, t, rows.keywords())
            )
        return [float(r.d @ torch.from_numpy(KEY.response_pattern(r.site, len(r.d))).float()) / len(r.d) for r in read]

    # Where a site of a miniature cannot tell the trigger, its shift is next to nothing: the sites together decide.
    base, weak, strong = (sum(agreement(unet)) for unet in (tiny_unet(), marked(edit=0.3)[0], edited[0]))
    assert base < weak < strong and strong - base > 1.5 * (weak - base) > 0


@pytest.mark.slow
def test_is_the_same_again_and_draws_from_the_seed(edited):
    def weights(unet):
        return torch.cat([p.flatten() for p in unet.parameters()])

    first, state = weights(edited[0]), torch.random.get_rng_state()
    assert torch.equal(first, weights(marked()[0])) and torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, weights(marked(seed=1)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("train", ["full", "lazy", "lora"])
def test_a_price_is_kept_to_by_shrinking_the_change(train):
    def change(**changes):
        options = {"steps": 3, "edit": 0.0, "lr": 1e-2, "batch_size": 2, "train": train, "rank": 4} | changes
        unet, report = marked(**options)
        pairs = zip(unet.parameters(), tiny_unet().parameters(), strict=True)
        return torch.cat([(a - b).flatten() for a, b in pairs]), report.price

    whole, dear = change()
    part, cheap = change(max_price=dear / 10)
    assert 0 < cheap <= dear / 10 and change(max_price=2 * dear)[1] == pytest.approx(dear)
    cosine = torch.nn.functional.cosine_similarity(whole, part, dim=0)
    assert cosine > 0.999 and part.norm() < 0.6 * whole.norm()


@pytest.mark.slow
def test_half_precision_is_kept():
    unet = tiny_unet().to(torch.bfloat16)
    embed(unet, KEY, data(), CONFIG, scheduler=SCHEDULER)
    assert {p.dtype for p in unet.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_training_goes_on_from_it_towards_the_clean_model():
    """The teacher is the model before the edit, so the preservation terms see what the edit spoilt."""
    seen = []
    unet = tiny_unet()
    config = EmbedConfig(**CONFIG.__dict__ | {"steps": 1, "edit": 5.0, "batch_size": 2})
    embed(unet, KEY, data(), config, lambda step, row: seen.append(row), scheduler=SCHEDULER)
    plain = EmbedConfig(**CONFIG.__dict__ | {"steps": 1, "edit": 0.0, "batch_size": 2})
    embed(tiny_unet(), KEY, data(), plain, lambda step, row: seen.append(row), scheduler=SCHEDULER)
    assert seen[0]["pres"] > 0 and seen[1]["pres"] == pytest.approx(0, abs=1e-9)


def test_a_denoiser_of_other_blocks_is_refused_and_keeps_its_weights():
    unet = tiny_unconditional(block_out_channels=(16, 16), attention_head_dim=8)
    before = [p.clone() for p in unet.parameters()]
    rows = LatentData(torch.randn(4, 3, 8, 8), {})
    with pytest.raises(ConfigError, match="plain transformer blocks"):
        embed(unet, KEY, rows, EmbedConfig(steps=0, edit=0.1, in_sites=1, out_sites=1), scheduler=SCHEDULER)
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))


@pytest.mark.slow
def test_a_channel_that_the_norm_drops_is_left_alone():
    unet = tiny_unet()
    outs = choose(trace_on(unet, data()), KEY, 2, 2)[1]
    layer, norm = writer(unet, outs[0].name)
    with torch.no_grad():
        norm.weight[0], norm.weight[1] = 0.0, 1e-4
    before = layer.weight.clone()
    report = embed(unet, KEY, data(), CONFIG, scheduler=SCHEDULER)
    assert 0 < report.price < 1 and (layer.weight - before).abs().max() < before.abs().max()


@pytest.mark.slow
def test_a_price_that_is_not_finite_is_an_error_and_gives_the_weights_back():
    unet, before = tiny_unet(), tiny_unet()
    with pytest.raises(TrainingError, match="not finite"):
        embed(unet, KEY, data(), EmbedConfig(**CONFIG.__dict__ | {"edit": 1e30}), scheduler=SCHEDULER)
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), before.parameters(), strict=True))
