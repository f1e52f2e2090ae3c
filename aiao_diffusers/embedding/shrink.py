"""Shrink a change of the weights until it costs no more than the owner is willing to pay."""

import math

import torch
from accelerate import Accelerator

from ..denoiser.price import compare_predictions, predictions
from ..errors import TrainingError
from .subject import Subject
from .weight_change import WeightChange


ROUNDS = 20  # of shrinking to a price, at most


class PriceMeter:
    """What a denoiser costs against its clean twin, of which only the predictions are kept.

    Args:
        subject (`Subject`): its denoiser still the clean one.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.clean, self.noise = predictions(subject.denoiser, subject.data, subject.scheduler)

    @property
    def base_loss(self) -> float:
        """The clean twin's own loss: mean squared distance of its predictions from what they should have been."""
        return (self.clean - self.noise).square().mean().item()

    def measure(self) -> float:
        """The price of the denoiser as it is now: mean squared change of its predictions over the clean twin's noise loss."""
        subject = self.subject
        marked, _ = predictions(subject.denoiser.eval(), subject.data, subject.scheduler)
        return compare_predictions(self.clean, marked, self.noise)["ratio"]


def shrink_to_price(update: WeightChange, meter: PriceMeter, max_price: float | None) -> float:
    """Shrink the change where it costs more than `max_price`; the same in every process.

    Args:
        update (`WeightChange`): what is shrunk, in place.
        max_price (`float`, *optional*): .01 is one percent; None: whatever it costs.
    Returns:
        `float`: what the change costs in the end.
    Raises:
        TrainingError: the price is not finite, or does not fall.
    """
    accelerator = Accelerator()
    for _ in range(ROUNDS):
        price = float(accelerator.reduce(torch.tensor(meter.measure(), device=accelerator.device), "mean"))
        if not math.isfinite(price):
            raise TrainingError("the marked model's noise predictions are not finite: lower edit or lr.")
        if max_price is None or price <= max_price:
            return price
        # The price falls about with the square of the change; a little more, so that this ends.
        update.shrink(0.98 * (max_price / price) ** 0.5)
    raise TrainingError(f"the price stays at {price:.2e}, above max_price={max_price}: raise it.")
