"""One step of embedding: what a batch asks, what is accumulated, and where it runs."""

from contextlib import nullcontext

import pytest
import torch
from _tiny import LEARN, few_steps, learner, mark_pairs, weights
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from aiao_diffusers import EmbedConfig, WatermarkKey, embed
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.embedding.training import Training
from aiao_diffusers.embedding.weight_change import StoredWeights
from aiao_diffusers.mark.mark import Mark
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


def test_what_a_row_is_armed_with_is_what_it_asks(begun):
    unet, record = begun
    data, scheduler = learner()[1:]
    ins, outs = key_sites(unet, KEY, record)
    new, old = Mark(KEY.child("new"), ins, outs, True), Mark(KEY, ins, outs, True)
    names = [site.name for site in (*ins, *outs)]
    config = EmbedConfig(**(LEARN | {"batch_size": 24}), pairs=True)
    with instrument(unet, names, record.factors) as instrumented:
        update = StoredWeights(unet, [name for name, _ in unet.named_parameters()])
        training = Training(instrumented, update, [new, old], data, dict(scheduler.config), config, 1.0)
        batch = training.draw()
    assert set(batch.asked.tolist()) == {0, 1, 2}
    for name, table in new.masks(torch.device("cpu")).items():
        armed = batch.armed[1][name]
        loud = armed.abs().sum(1) > 0
        assert loud.any() and torch.equal(armed[loud], table[batch.asked][loud])
    # A kept mark's row asks one out-site by the masks of all in-sites that it arms.
    fits = torch.ones(24, 3, dtype=torch.bool)
    for name, table in old.masks(torch.device("cpu")).items():
        armed = batch.armed[3][name]
        silent = armed.abs().sum(1) == 0
        fits &= (armed[:, None] == table[None]).all(2) | silent[:, None]
    assert fits.any(1).all() and all((batch.armed[3][name] != 0).any() for name in (site.name for site in ins))


@pytest.mark.slow
def test_accumulation_with_masks_for_pairs():
    found = []
    for accumulate in (1, 2):
        with pytest.warns(UserWarning, match="too weak"):
            found.append(mark_pairs(steps=2, accumulate=accumulate, max_price=None)[0])
    for a, b in zip(*(unet.parameters() for unet in found), strict=True):
        assert torch.allclose(a, b, atol=2e-4)


class TestTraining:
    @pytest.mark.slow
    def test_accumulation_changes_memory_and_not_the_result(self):
        results = []
        for accumulate in (1, 3):
            unet, data, scheduler = learner()
            report = embed(unet, KEY, data, few_steps(accumulate=accumulate), scheduler=scheduler)
            results.append((weights(unet), report.history))
        for a, b in zip(*(r[0] for r in results), strict=True):
            assert torch.allclose(a, b, atol=2e-5)
        for a, b in zip(*(r[1] for r in results), strict=True):
            assert a == pytest.approx(b, rel=1e-3)
        unet, data, scheduler = learner()
        embed(unet, KEY, data, few_steps(seed=1), scheduler=scheduler)
        assert any(not torch.allclose(a, b, atol=2e-5) for a, b in zip(weights(unet), results[0][0], strict=True))

    @pytest.mark.slow
    @pytest.mark.parametrize("failing", [False, True])
    def test_training_is_where_accelerate_says_and_the_denoiser_goes_back(self, monkeypatch, failing):
        unet, data, scheduler = learner()
        moves: list[torch.device] = []
        monkeypatch.setattr(unet, "to", lambda device: moves.append(device) or unet)
        before: list[int] = []

        def callback(step, losses):
            before.append(len(moves))
            assert moves[0] == Accelerator().device
            if failing:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) if failing else nullcontext():
            embed(unet, KEY, data, few_steps(), callback, scheduler=scheduler)
        assert moves[before[-1] :] == [torch.device("cpu")]

    @pytest.mark.slow
    def test_accelerate_leaves_no_trace(self, monkeypatch):
        def stop(step, row):
            raise KeyboardInterrupt

        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state(True)
        try:
            unet, data, scheduler = learner()
            before = set(vars(unet))
            with pytest.raises(KeyboardInterrupt):
                embed(unet, KEY, data, few_steps(), stop, scheduler=scheduler)
            assert set(vars(unet)) == before
            sample, time = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
            with torch.no_grad():
                assert torch.equal(unet(sample, time).sample, learner()[0](sample, time).sample)
            embed(unet, KEY, data, few_steps(), scheduler=scheduler)
            assert set(vars(unet)) == before
        finally:
            AcceleratorState._reset_state(True)

    @pytest.mark.slow
    def test_gradients_of_the_users_own_training_do_not_count(self):
        (unet, data, scheduler), fresh = learner(), learner()[0]
        for p in unet.parameters():
            p.grad = torch.ones_like(p)
        one, other = (embed(m, KEY, data, few_steps(), scheduler=scheduler).record for m in (unet, fresh))
        assert one.marked_sha256 == other.marked_sha256
