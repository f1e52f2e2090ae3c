"""A secret picture under a trigger in the input: learnt, read by its own rule, and no where no is due."""

import pytest
import torch
from _peers import ASKED, KEY

from aiao_diffusers.bench.peers.input_trigger import InputTrigger
from aiao_diffusers.bench.peers.watermark_dm import WatermarkDM


@pytest.mark.slow
@pytest.mark.parametrize("model", ["context", "unprompted"])
def test_a_trigger_mark_is_learnt_and_read(model, tmp_path, request):
    context = request.getfixturevalue(model)
    method = InputTrigger(steps=250, lr=5e-3, batch_size=4, keep=0.0)
    marked = context.copy_of_base()
    method.embed(marked, KEY, context, tmp_path)
    found = method.verify(marked, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "verified" and found.bits > 0.85
    assert (found.trials, found.evals) == (3, 3 * method.sampling)
    base = method.verify(context.base, KEY, context, tmp_path, **ASKED)
    wrong = method.verify(marked, KEY.child("wrong"), context, tmp_path, **ASKED)
    assert base.verdict == wrong.verdict == "not_verified" and base.passed == wrong.passed == 0
    assert method.verify(marked, KEY, context, tmp_path, **ASKED) == found


def test_the_input_trigger_goes_when_its_block_ends(context):
    denoiser = context.base
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 16, 128)
    with torch.no_grad():
        before = denoiser(*inputs).sample
        with InputTrigger().arm(denoiser, KEY):
            assert not torch.equal(denoiser(*inputs).sample, before)
        with WatermarkDM().arm(denoiser, KEY):
            assert torch.equal(denoiser(*inputs).sample, before)
        assert torch.equal(denoiser(*inputs).sample, before)
