"""Sites, processors, probe: bit-exact when unarmed, and everything put back."""

import pytest
import torch
from _tiny import learner, predict

from aiao_diffusers import WatermarkKey
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.sites import attention_modules, trace, trace_on
from aiao_diffusers.errors import SiteError


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestProbe:
    def test_armed_changes_and_is_put_back_after_an_exception(self, model):
        unet, x, keywords = model
        modules = attention_modules(unet)
        before, installed, state = (
            predict(unet, x, keywords),
            [m.processor for m in modules.values()],
            list(unet.state_dict()),
        )
        sites = trace(unet, lambda: predict(unet, x, keywords))
        mask = torch.from_numpy(KEY.trigger_mask(sites[0].name, sites[0].width_out))
        with pytest.raises(RuntimeError, match="planted"):
            with instrument(unet, [sites[0].name]) as instrumented, instrumented.arm({sites[0].name: mask}, 1.0):
                assert not torch.equal(predict(unet, x, keywords), before)
                raise RuntimeError("planted")
        assert all(m.processor is p for m, p in zip(modules.values(), installed, strict=True))
        assert list(unet.state_dict()) == state and torch.equal(predict(unet, x, keywords), before)

    def test_nested_is_refused(self, model):
        unet = model[0]
        names = list(attention_modules(unet))
        with instrument(unet, names), pytest.raises(SiteError, match="wrapped already"), instrument(unet, names):
            pass


def test_a_factor_multiplies_the_amplitude_at_its_site_alone():
    unet, data, _ = learner()
    site = trace_on(unet, data)[0].name
    with (
        instrument(unet, [site], {site: 2.5}) as instrumented,
        instrumented.arm({site: torch.ones(4)}, torch.tensor([0.0, 2.0])),
    ):
        assert instrumented.processors[site].amplitude.tolist() == [0.0, 5.0]
    with instrument(unet, [site], {"elsewhere": 2.5}) as instrumented, instrumented.arm({site: torch.ones(4)}, 2.0):
        assert instrumented.processors[site].amplitude == 2.0
