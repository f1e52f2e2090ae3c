"""Which sites a key chooses."""

import pytest
from _tiny import learner

from aiao_diffusers import WatermarkKey
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.mark.selection import IN_SPAN, choose, span


KEY = WatermarkKey(bytes(range(32)), "Demo")


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
