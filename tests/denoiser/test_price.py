"""The price of a change, over the loss of the denoiser's own objective."""

from _tiny import learner
from diffusers import DDPMScheduler

from aiao_diffusers.denoiser.price import measure_price


class TestPrice:
    def test_price_of_a_v_prediction_model_is_over_its_own_loss(self):
        unet, data, _ = learner()
        losses = [
            measure_price(unet, unet, data, DDPMScheduler(prediction_type=kind), samples=32)["loss"]
            for kind in ("epsilon", "v_prediction")
        ]
        assert losses[0] != losses[1]
