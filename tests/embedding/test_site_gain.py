"""How loud a trigger is at each in-site: factors by what random masks move, and no in-site that reaches nothing."""

import pytest
import torch
from _tiny import learner, tiny_unet
from diffusers import DDPMScheduler

from aiao_diffusers import LatentData, WatermarkKey
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.embedding.site_gain import WANTED, site_gain
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.mark.selection import IN_SPAN, choose, span


KEY = WatermarkKey(bytes(range(32)), "Demo")


def conditional():
    """A U-Net whose processors return what is added to the stream, not the stream."""
    generator = torch.Generator().manual_seed(0)
    text = {"encoder_hidden_states": torch.randn(8, 5, 12, generator=generator)}
    return tiny_unet(), LatentData(torch.randn(8, 4, 8, 8, generator=generator), text), DDPMScheduler()


def measured(unet, data, scheduler, **options):
    return site_gain(unet, trace_on(unet, data), data, dict(scheduler.config), **{"most": 3.0} | options)


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


def test_it_knows_no_key_gives_everything_back_and_is_the_same_every_time():
    unet, data, scheduler = learner()
    before, state = [p.clone() for p in unet.parameters()], torch.random.get_rng_state()
    once, again = (measured(unet.train(), data, scheduler) for _ in range(2))
    assert once == again and unet.training
    assert all(torch.equal(p, q) for p, q in zip(unet.parameters(), before, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(measured(unet, data, scheduler, most=1.0).values()) == {1.0}
    assert 0 < WANTED < 1


def test_a_factor_multiplies_the_amplitude_at_its_site_alone():
    unet, data, _ = learner()
    site = trace_on(unet, data)[0].name
    with instrument(unet, [site], {site: 2.5}) as wired, wired.arm({site: torch.ones(4)}, torch.tensor([0.0, 2.0])):
        assert wired.processors[site].amplitude.tolist() == [0.0, 5.0]
    with instrument(unet, [site], {"elsewhere": 2.5}) as wired, wired.arm({site: torch.ones(4)}, 2.0):
        assert wired.processors[site].amplitude == 2.0


def test_no_key_chooses_a_silent_site():
    unet, data, _ = learner()
    sites = trace_on(unet, data)
    candidates = span(sites, IN_SPAN)
    silent = {candidates[0].name}
    count = len(candidates) - 1
    chosen = [choose(sites, KEY.child(str(i)), count, 1, silent)[0] for i in range(8)]
    assert all(site.name not in silent for ins in chosen for site in ins)
    with pytest.raises(ConfigError, match="in-sites asked for"):
        choose(sites, KEY, len(candidates), 1, silent)
