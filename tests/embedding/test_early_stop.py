"""An embedding that ends when its mark holds, and looks that leave no trace in it."""

import pytest
from _tiny import LEARN, few_steps, learner, same, weights

from aiao_diffusers import EmbedConfig, WatermarkKey, embed, verify


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestEarlyStop:
    @pytest.mark.slow
    def test_looking_does_not_change_the_training(self):
        looked, plain = learner(), learner()
        embed(looked[0], KEY, looked[1], few_steps(check_every=1, stop_bits=1.0), scheduler=looked[2])
        embed(plain[0], KEY, plain[1], few_steps(), scheduler=plain[2])
        assert same(weights(looked[0]), weights(plain[0]))


@pytest.mark.slow
class TestMark:
    def test_stops_early_when_it_holds(self):
        unet, data, scheduler = learner()
        config = EmbedConfig(**LEARN, steps=120, stop_bits=0.9, check_every=10)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        last = report.history[-1]
        assert report.stopped == len(report.history) < 120
        assert min(last["bits"], last["weakest"]) >= 0.9 and last["wrong_log10_p"] >= -4
        assert all(row.get("weakest", 0) < 0.9 for row in report.history[:-1])
        assert verify(unet, KEY, record=report.record).verified
        # What the report says of the mark is what a verifier finds who looks as plainly.
        plainly = {"early_stop": False, "amplitudes": (1.0,), "whiten": False}
        assert report.reading == verify(unet, KEY, record=report.record, **plainly) and report.reading.verified
        assert report.to_dict()["log10_p"] == report.reading.log10_p < -6
