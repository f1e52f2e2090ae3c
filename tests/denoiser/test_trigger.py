"""The trigger and the difference that it makes, by hand."""

import torch

from aiao_diffusers.denoiser.trigger import apply_trigger, difference


class TestTrigger:
    def test_by_hand(self):
        y = torch.tensor([[[3.0, 4.0]]])  # rms = sqrt(12.5)
        out = apply_trigger(y, torch.tensor([1.0, -1.0]), 2.0)
        assert torch.allclose(out, y + 2 * 12.5**0.5 * torch.tensor([1.0, -1.0]))

    def test_zero_amplitude_changes_no_bit(self):
        y = torch.randn(2, 3, 4)
        assert torch.equal(apply_trigger(y, torch.ones(4), torch.zeros(2)), y)

    def test_difference_by_hand(self):
        clean = torch.ones(1, 2, 2)
        assert torch.allclose(difference(clean + torch.tensor([0.5, -1.0]), clean), torch.tensor([0.5, -1.0]))
