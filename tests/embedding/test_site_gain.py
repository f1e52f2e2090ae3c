"""How loud a trigger is at each in-site: factors by what random masks move, and no in-site that reaches nothing."""

import pytest
import torch
from _tiny import learner, tiny_unet
from diffusers import DDPMScheduler

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.embedding.site_gain import WANTED, site_gain
from aiao_diffusers.mark.selection import IN_SPAN, span


def conditional():
    """A U-Net whose processors return what is added to the stream, not the stream."""
    generator = torch.Generator().manual_seed(0)
    text = {"encoder_hidden_states": torch.randn(8, 5, 12, generator=generator)}
    return tiny_unet(), LatentData(torch.randn(8, 4, 8, 8, generator=generator), text), DDPMScheduler()


def measured(unet, data, scheduler, **options):
    return site_gain(unet, trace_on(unet, data), data, dict(scheduler.config), **{"most": 3.0} | options)


@pytest.mark.slow
def test_a_quiet_site_is_made_louder_and_one_that_reaches_nothing_is_none():
    unet, data, scheduler = conditional()
    candidates = span(trace_on(unet, data), IN_SPAN)
    first, last = candidates[0], candidates[-1]
    assert first.name != last.name
    plain = measured(unet, data, scheduler, most=100.0)
    assert list(plain) == [site.name for site in candidates]

    def scaled(factor):
        quiet = tiny_unet()
        with torch.no_grad():
            for p in quiet.get_submodule(first.name).to_out[0].parameters():
                p.mul_(factor)
        return quiet

    # A tenth of the output is a tenth of the trigger; never louder than the most.
    assert measured(scaled(0.1), data, scheduler, most=100.0)[first.name] > 3 * plain[first.name]
    assert measured(scaled(0.01), data, scheduler)[first.name] == 3.0
    silent = measured(scaled(0.0), data, scheduler)
    assert silent[first.name] == 0.0 and silent[last.name] > 0
    # So many stay as are asked for, however little they reach.
    assert all(measured(scaled(0.0), data, scheduler, least=len(candidates)).values())


@pytest.mark.slow
def test_a_mask_that_arrives_whole_is_never_made_louder():
    """A gated block moves the next site's stream little, and all of it arrives at the out-sites: its mask is loud enough."""
    unet, data, scheduler = conditional()
    plain = measured(unet, data, scheduler, most=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aiao_diffusers.embedding.site_gain.KEPT", 1e-6)
        near = measured(unet, data, scheduler, most=100.0)
    assert any(gain > 1 for gain in plain.values()) and all(gain in (0.0, 1.0) for gain in near.values())


def test_it_knows_no_key_gives_everything_back_and_is_the_same_every_time():
    unet, data, scheduler = learner()
    before, state = [p.clone() for p in unet.parameters()], torch.random.get_rng_state()
    once, again = (measured(unet.train(), data, scheduler) for _ in range(2))
    assert once == again and unet.training
    assert all(torch.equal(p, q) for p, q in zip(unet.parameters(), before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(measured(unet, data, scheduler, most=1.0).values()) == {1.0}
    assert 0 < WANTED < 1
