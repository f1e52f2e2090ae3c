"""Likeness finds kin, ancestors too."""

import pytest
import torch
from _peers import ASKED, KEY, small_unet

from aiao_diffusers.bench.registry import METHODS


def test_likeness_cannot_tell_a_child_from_its_ancestor(context, tmp_path):
    """The rule finds kin, and so calls the unmarked base itself a descendant: its false verdict is the point."""
    method, owner = METHODS["likeness"](), context.copy_of_base()
    with torch.no_grad():
        for weight in owner.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight))
    method.embed(owner, KEY, context, tmp_path)
    assert method.verify(owner, KEY, context, tmp_path, **ASKED).statistic == pytest.approx(1.0)
    assert method.verify(context.base, KEY, context, tmp_path, **ASKED).verdict == "verified"
    stranger = method.verify(small_unet(9), KEY, context, tmp_path, **ASKED)
    assert stranger.verdict == "not_verified" and stranger.log10_p is None
