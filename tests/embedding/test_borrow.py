"""A denoiser lent to training comes back as it was, whatever happened."""

import pytest
import torch
from _tiny import learner

from aiao_diffusers.embedding.borrow import borrow, undo_on_failure
from aiao_diffusers.embedding.weight_change import StoredWeights


@pytest.mark.parametrize("failing", [False, True])
def test_precision_mode_flags_and_random_state(failing):
    unet = learner()[0].half().train()
    unet.conv_in.requires_grad_(False)
    state = torch.random.get_rng_state()
    try:
        with borrow(unet, seed=5):
            assert not unet.training and {p.dtype for p in unet.parameters()} == {torch.float32}
            assert torch.initial_seed() == 5
            torch.randn(3)
            for p in unet.requires_grad_(True).parameters():
                p.grad = torch.ones_like(p)
            if failing:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert failing
    assert unet.training and {p.dtype for p in unet.parameters()} == {torch.float16}
    assert not unet.conv_in.weight.requires_grad and unet.conv_out.weight.requires_grad
    assert all(p.grad is None for p in unet.parameters()) and torch.equal(torch.random.get_rng_state(), state)


def test_weights_are_undone_only_on_failure():
    unet = learner()[0]
    before = unet.conv_in.weight.clone()
    for error in (None, KeyboardInterrupt):
        update = StoredWeights(unet, ["conv_in.weight"])
        try:
            with undo_on_failure(update):
                unet.conv_in.weight.data += 1
                if error:
                    raise error
        except KeyboardInterrupt:
            assert torch.equal(unet.conv_in.weight, before)
        else:
            assert torch.equal(unet.conv_in.weight, before + 1)
            update.undo()
