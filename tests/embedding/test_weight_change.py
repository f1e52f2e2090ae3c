"""The weights that embedding may change: put back, kept, shrunk, bit for bit."""

import pytest
import torch
from _tiny import few_steps, learner, same, weights

from aiao_diffusers import WatermarkKey, embed, profile
from aiao_diffusers.embedding.weight_change import LowRank, StoredWeights


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestUpdate:
    def test_off_is_the_original_and_on_is_the_trained_bit_for_bit(self):
        unet = learner()[0]
        names = [name for name, _ in unet.named_parameters()][:7]
        stored, before = StoredWeights(unet, names), weights(unet)
        with torch.no_grad():
            for p in stored.parameters.values():
                p += 1
        trained = weights(unet)
        with pytest.raises(KeyError), stored.original():
            assert same(weights(unet), before) and not same(trained, before)
            raise KeyError
        assert same(weights(unet), trained)
        assert [n for n, p in unet.named_parameters() if p.requires_grad] == names
        stored.undo()
        assert same(weights(unet), before)

    def test_shrink_keeps_a_share_of_the_change(self):
        unet = learner()[0]
        names = [name for name, _ in unet.named_parameters()][:3]
        stored = StoredWeights(unet, names)
        before = [p.detach().clone() for p in stored.parameters.values()]
        with torch.no_grad():
            for p in stored.parameters.values():
                p += 1
        stored.shrink(0.75)
        stored.release()
        for p, old in zip(stored.parameters.values(), before, strict=True):
            assert torch.allclose(p, old + 0.75)

    def test_low_rank_shrinks_with_its_scale(self):
        deltas = []
        for share in (1.0, 0.5):
            unet, plain = learner()[0], learner()[0]
            update = LowRank(unet, 4)
            with torch.no_grad():
                for p in update.parameters.values():
                    p.fill_(0.05)
            update.shrink(share)
            update.merge()
            deltas.append([a - b for a, b in zip(weights(unet), weights(plain), strict=True)])
        for whole, half in zip(*deltas, strict=True):
            assert torch.allclose(half, whole / 2, atol=1e-5)
        assert any(whole.abs().max() > 0.01 for whole in deltas[0])

    def test_low_rank_off_undo_and_settle(self):
        sample, time = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])

        def changed():
            unet = learner()[0]
            update = LowRank(unet, 4)
            with torch.no_grad():
                for p in update.parameters.values():
                    p += 0.05
            return unet, update

        plain = learner()[0]
        with torch.no_grad():
            wanted = plain(sample, time).sample
            unet, update = changed()
            adapted = unet(sample, time).sample
            assert not torch.allclose(adapted, wanted, atol=1e-3)
            with update.original():
                assert torch.equal(unet(sample, time).sample, wanted)
            assert all(p.requires_grad for p in update.parameters.values())
            update.undo()
            assert same(weights(unet), weights(plain)) and vars(unet).keys() == vars(plain).keys()
            unet, update = changed()
            update.merge()
            update.release()
            assert torch.allclose(unet(sample, time).sample, adapted, atol=1e-4)
        assert [n for n, _ in unet.named_modules()] == [n for n, _ in plain.named_modules()]

    def test_low_rank_fused_by_half_is_undone(self, monkeypatch):
        unet = learner()[0]
        update, before = LowRank(unet, 4), weights(learner()[0])
        with torch.no_grad():
            for p in update.parameters.values():
                p += 0.05

        def stop():
            raise KeyboardInterrupt

        monkeypatch.setattr(update.layers[3], "merge", stop)
        with pytest.raises(KeyboardInterrupt):
            update.merge()
        update.undo()
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(unet), before, strict=True))


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("train", ["lazy", "lora"])
    def test_subset_and_low_rank_train_no_more_than_they_say(self, train):
        unet, data, scheduler = learner()
        tuned = learner()[0]
        for number, p in enumerate(tuned.parameters()):
            p.data *= 1 + 0.001 * number
        found = profile(unet, tuned)
        before = dict(zip([n for n, _ in unet.named_parameters()], weights(unet), strict=True))
        report = embed(unet, KEY, data, few_steps(train=train, rank=4), scheduler=scheduler, profile=found)
        moved = {n for n, p in unet.named_parameters() if not torch.equal(p, before[n])}
        assert unet.state_dict().keys() == learner()[0].state_dict().keys()
        if train == "lazy":
            lazy = set(found.laziest(unet, 0.5))
            assert moved and moved <= lazy and report.trained == sum(before[n].numel() for n in lazy)
        else:
            # Factors of rank 4 cannot make a change of higher rank.
            name = "mid_block.attentions.0.to_q.weight"
            delta = dict(unet.named_parameters())[name] - before[name]
            assert name in moved and torch.linalg.matrix_rank(delta, atol=1e-6) <= 4
            assert not any("norm" in n for n in moved)
