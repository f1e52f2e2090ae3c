"""The carrier changes no output, puts the key's directions where it says, and takes nothing on where it is not exact."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from _carried import KEY, SCHEDULER, carry, latents, text_unet
from _shipped import ASSETS
from _tiny import LEARN, learner, same, weights
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import nn

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed, verify
from aiao_diffusers.denoiser.price import measure_price
from aiao_diffusers.errors import AIAOError, AlreadyMarkedError, ConfigError, NotTestableError, SiteError
from aiao_diffusers.lineage import carrier
from aiao_diffusers.lineage.carrier import CarrierReport, add_carrier
from aiao_diffusers.lineage.rounding import RoundingCost
from aiao_diffusers.lineage.site import direction
from aiao_diffusers.lineage.sites import plan_carrier


def entering(unet: nn.Module) -> dict[str, torch.Tensor]:
    """What enters the layers of each site in one forward, averaged over rows and places."""
    found: dict[str, torch.Tensor] = {}

    def listen(name: str, width: int):
        def hook(_, args):
            x = args[0].double()
            found[name] = (x.movedim(1, -1) if x.ndim == 4 else x).reshape(-1, width).mean(0)

        return hook

    hooks = [
        unet.get_submodule(site.layers[0]).register_forward_pre_hook(listen(site.name, site.width))
        for site in plan_carrier(unet).sites
    ]
    with torch.no_grad():
        unet(latents().latents[:4], torch.tensor([5, 100, 300, 900]), **latents().take(torch.arange(4)).keywords())
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "transformer_layers_per_block": 2},
        {"upcast_attention": True, "act_fn": "gelu"},
    ],
)
@pytest.mark.slow
def test_no_output_changes(changes):
    unet = text_unet(**changes)
    clean = copy.deepcopy(unet)
    report = carry(unet)
    assert len(report.sites) >= 24 and report.left_out == {}
    assert report.price < 1e-11 and report.largest_difference < 1e-4
    assert measure_price(clean, unet, latents(), SCHEDULER, samples=8, seed=9)["ratio"] < 1e-11
    assert not same(weights(clean), weights(unet))


def test_each_site_is_shifted_by_its_direction_and_the_public_one():
    unet = text_unet()
    for module in unet.modules():  # norms as training leaves them
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    before = entering(unet)
    assert carry(unet).price < 1e-11
    after = entering(unet)
    for site in plan_carrier(unet).sites:
        shift = after[site.name] - before[site.name]
        if site.kind == "attention_output":  # beside it the norm's own shift comes through the values
            own = site.shifted[0].module
            values = unet.get_submodule(own).weight.detach().double()
            at = next(s.name for s in plan_carrier(unet).sites if own in s.layers)
            assert values.shape[1] == len(before[at])
            continue
        unit = shift / shift.abs().max() * 2
        np.testing.assert_allclose(unit.numpy(), direction(KEY, site) + 1.0, atol=2e-2)


def test_keys_of_attention_are_left_alone_and_averages_stay_close():
    unet = text_unet()
    clean = copy.deepcopy(unet)
    carry(unet)
    state, old = unet.state_dict(), clean.state_dict()
    assert all(torch.equal(state[name], old[name]) for name in state if "to_k" in name)
    assert any(not torch.equal(state[name], old[name]) for name in state if "attn1.to_q" in name)
    average = copy.deepcopy(clean)
    average.load_state_dict({name: (state[name] + old[name]) / 2 for name in state})
    # Not the rounding of the parts: by the planes, an average is off by part of the constants that they absorb.
    assert measure_price(clean, average, latents(), SCHEDULER, samples=8)["ratio"] < 5e-3


@pytest.mark.slow
def test_biases_alone_make_an_average_as_exact_as_its_parts():
    unet, data, scheduler = learner()
    clean = copy.deepcopy(unet)
    report = add_carrier(unet, KEY, data, scheduler=scheduler, samples=4)
    assert report.sites and report.price < 1e-11
    average = copy.deepcopy(clean)
    average.load_state_dict({n: (unet.state_dict()[n] + v) / 2 for n, v in clean.state_dict().items()})
    assert measure_price(clean, average, data, scheduler, samples=8)["ratio"] < 1e-11


def test_a_norm_whose_plane_is_no_use_is_left_out_with_what_hangs_on_it():
    unet = text_unet()
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    with torch.no_grad():
        block.norm1.weight[3] = 1e-4
    report = carry(unet)
    name = "mid_block.attentions.0.transformer_blocks.0"
    assert report.left_out.keys() == {f"{name}.norm1", f"{name}.attn1.to_out.0"}
    assert "plane" in report.left_out[f"{name}.norm1"]
    assert len(report.sites) == 22 and report.price < 1e-11


@pytest.mark.slow
def test_half_of_the_shipped_model_and_half_of_its_carrier_cost_less_than_a_twentieth_of_a_percent():
    clean = UNet2DConditionModel.from_pretrained(ASSETS / "base" / "unet").eval()
    data = LatentData.load(ASSETS / "latents" / "twemoji.safetensors")
    scheduler = DDPMScheduler.from_pretrained(ASSETS / "base" / "scheduler")
    mixed = copy.deepcopy(clean)
    report = add_carrier(mixed, KEY, data, scheduler=scheduler, samples=4)
    assert len(report.sites) == 66 and report.price < 1e-11
    state = mixed.state_dict()
    mixed.load_state_dict({name: (value + state[name]) / 2 for name, value in clean.state_dict().items()})
    assert 0 < measure_price(clean, mixed, data, scheduler, samples=16)["ratio"] < 5e-4


def with_adapter(unet: nn.Module) -> nn.Module:
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    return unet


@pytest.mark.parametrize(
    ("unet", "options", "error", "told"),
    [
        (text_unet, {"strength": 0}, ConfigError, "strength is 0"),
        (text_unet, {"strength": 5}, ConfigError, "at most 4"),
        (text_unet, {"strength": float("nan")}, ConfigError, "strength is nan"),
        (text_unet, {"samples": 0}, ConfigError, "samples is 0"),
        (lambda: with_adapter(text_unet()), {}, NotTestableError, "take them off"),
        (lambda: nn.Linear(2, 2), {}, SiteError, "no site"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(unet, options, error, told):
    made = unet()
    before = weights(made)
    with pytest.raises(error, match=told):
        carry(made, **options)
    assert same(before, weights(made))


def test_a_second_carrier_of_the_same_key_is_refused_and_one_of_another_is_not():
    unet = text_unet()
    carry(unet)
    with pytest.raises(AlreadyMarkedError, match="already"):
        carry(unet)
    assert carry(unet, WatermarkKey(bytes(32), "Other")).price < 1e-11


@pytest.mark.parametrize("failure", ["limit", "forward"])
def test_weights_are_put_back_where_the_predictions_changed_or_could_not_be_made(monkeypatch, failure):
    unet = text_unet()
    before = weights(unet)
    if failure == "limit":
        monkeypatch.setattr(carrier, "LIMIT", -1.0)
    else:
        calls = []
        real = carrier.predictions

        def once(*args, **kwargs):
            calls.append(1)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        monkeypatch.setattr(carrier, "predictions", once)
    with pytest.raises((AIAOError, KeyboardInterrupt)):
        carry(unet)
    assert same(before, weights(unet))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["carrier", "mark"])
def test_the_mark_of_sub_paths_reads_the_same_whichever_comes_first(first):
    unet, data, scheduler = learner()

    def put_in() -> None:
        assert add_carrier(unet, KEY, data, scheduler=scheduler, samples=4).price < 1e-11

    if first == "carrier":
        put_in()
    record = embed(unet, KEY, data, EmbedConfig(**(LEARN | {"steps": 60})), scheduler=scheduler).record
    before = verify(unet, KEY, record=record, trials=4)
    if first == "carrier":
        # Training moves biases little: what was put in is still there.
        with pytest.raises(AlreadyMarkedError):
            put_in()
    else:
        put_in()
        after = verify(unet, KEY, record=record, trials=4)
        assert after.log10_p == pytest.approx(before.log10_p, abs=0.5)
    assert before.verdict == "verified" and before.log10_p < -8


def test_the_report_is_plain_data():
    told = carry(text_unet()).to_dict()
    assert told["strength"] == carrier.STRENGTH and len(told["sites"]) == 24
    assert json.loads(json.dumps(told))["rounded"]["float16"]["price"] > 0


def test_the_report_in_words_has_numbers_that_people_read():
    halves = {
        "bfloat16": RoundingCost(1.23456, 0.0, 0.00123, False),
        "float16": RoundingCost(math.nan, 0.0, 2e-9, True),
    }
    told = CarrierReport(("a",), {}, 0.25, 8e-13, 0.0, "float32", halves).in_words
    assert "by under 0.0001% of the noise loss in float32" in told and "e-" not in told and "e+" not in told
    assert "123% in bfloat16 (rounding alone 0.12%), nan% in float16 (rounding alone under 0.0001%)" in told
