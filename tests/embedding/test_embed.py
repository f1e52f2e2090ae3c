"""The embedding engine on a miniature: what is trained, what is given back, early stop, earlier marks, bad input."""

import copy
import dataclasses
import math
import sys

import pytest
import torch
from _shipped import ASSETS
from _tiny import LEARN, few_steps, learner, mark_pairs, same, tiny_unet, weights
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from aiao_diffusers import EmbedConfig, WatermarkKey, WatermarkRecord, embed, profile, verify
from aiao_diffusers.bench.attacks.finetune import ATTENTION
from aiao_diffusers.denoiser.finetune import finetune
from aiao_diffusers.errors import TrainingError, WrongBaseError


KEY = WatermarkKey(bytes(range(32)), "Demo")


def lora_deltas(unet):
    """Weight -> what a LoRA trained on a copy of `unet`, by peft, adds to it."""
    data, scheduler = learner()[1:]
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=ATTENTION)
    adapted = inject_adapter_in_model(config, copy.deepcopy(unet).requires_grad_(False))
    finetune(adapted, data, scheduler, steps=60, lr=1e-3, batch_size=4)
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    return {f"{name}.weight": module.get_delta_weight("default").detach() for name, module in layers.items()}


@pytest.fixture(scope="module")
def learned():
    return mark_pairs(steps=60)


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


class TestTraining:
    def test_a_profile_of_another_model_is_refused_and_nothing_changes(self):
        unet, data, scheduler = learner()
        tuned = tiny_unet()
        tuned.conv_in.weight.data *= 2
        with pytest.raises(WrongBaseError):
            embed(unet, KEY, data, few_steps(train="lazy"), scheduler=scheduler, profile=profile(tiny_unet(), tuned))
        assert same(weights(unet), weights(learner()[0]))

    @pytest.mark.slow
    def test_place_half_precision_flags_mode_and_random_state_come_back(self):
        unet, data, scheduler = learner()
        unet = unet.half()
        first = next(unet.parameters()).requires_grad_(False)
        state = torch.get_rng_state()
        report = embed(unet, KEY, data, few_steps(), scheduler=scheduler)
        assert torch.equal(torch.get_rng_state(), state)
        # On a machine with a GPU, training was there.
        assert all(p.device.type == "cpu" and p.dtype == torch.float16 and p.grad is None for p in unet.parameters())
        assert not first.requires_grad and not unet.training
        assert all(p.requires_grad for p in list(unet.parameters())[1:])
        assert not same(weights(unet), weights(learner()[0].half()))
        assert 0 < report.price < 1


class TestBadInput:
    def test_not_finite_loss_stops_and_gives_the_weights_back(self):
        unet, data, scheduler = learner()
        before = weights(unet)
        with pytest.raises(TrainingError, match="lower lr"):
            embed(unet, KEY, data, few_steps(steps=40, lr=1e12, anchor=0.0), scheduler=scheduler)
        assert same(weights(unet), before)

    @pytest.mark.slow
    def test_after_a_failure_the_same_model_can_be_tried_again(self):
        unet, data, scheduler = learner()
        with pytest.raises(TrainingError, match="lower lr"):
            embed(unet, KEY, data, few_steps(steps=40, lr=1e12, anchor=0.0), scheduler=scheduler)
        assert all(p.grad is None for p in unet.parameters())
        again = embed(unet, KEY, data, few_steps(), scheduler=scheduler).record
        assert (
            again.marked_sha256
            == embed(*learner()[:1], KEY, data, few_steps(), scheduler=scheduler).record.marked_sha256
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("train", ["full", "lazy"])
    def test_an_interrupt_while_the_record_is_made_gives_the_weights_back(self, monkeypatch, train):
        def stop(*args):
            raise KeyboardInterrupt

        # The package's name `embed` is the function; the module is reached by its path.
        monkeypatch.setattr(sys.modules["aiao_diffusers.embedding.embed"], "make_record", stop)
        unet, data, scheduler = learner()
        with pytest.raises(KeyboardInterrupt):
            embed(unet, KEY, data, few_steps(train=train), scheduler=scheduler)
        assert same(weights(unet), weights(learner()[0]))

    @pytest.mark.slow
    def test_a_denoiser_that_predicts_variances_too(self):
        torch.manual_seed(0)
        unet, data, scheduler = learner()
        unet = type(unet).from_config({**unet.config, "out_channels": 2 * unet.config.in_channels}).eval()
        report = embed(unet, KEY, data, few_steps(), scheduler=scheduler)
        assert math.isfinite(report.price) and len(report.history) == few_steps().steps


@pytest.mark.slow
class TestMark:
    def test_lazy_subset_and_low_rank_carry_it(self):
        for changes in ({"train": "lazy"}, {"train": "lora", "rank": 8, "lr": 1e-2}):
            unet, data, scheduler = learner()
            config = EmbedConfig(**(LEARN | {"steps": 40} | changes))
            record = embed(unet, KEY, data, config, scheduler=scheduler).record
            assert verify(unet, KEY, record=record).verdict == "verified"
            assert verify(unet, KEY.child("wrong"), record=record).log10_p > -5
            assert verify(learner()[0], KEY, record=record).log10_p > -5

    def test_three_keys_verify_where_earlier_ones_are_kept(self):
        unet, data, scheduler = learner(64)
        keys, records = [KEY.child(f"owner {i}") for i in range(3)], []
        for number, key in enumerate(keys):
            config = EmbedConfig(**(LEARN | {"eps": 1.3}), steps=30)
            further = {"keep": keys[:number], "earlier": records[-1]} if records else {}
            records.append(embed(unet, key, data, config, scheduler=scheduler, **further).record)
        assert all(verify(unet, k, record=r).verified for k, r in zip(keys, records, strict=True))
        assert verify(unet, KEY.child("nobody"), record=records[0]).log10_p > -5
        clean = learner(64)[0]
        assert all(verify(clean, k, record=r).log10_p > -5 for k, r in zip(keys, records, strict=True))


@pytest.mark.slow
class TestPairsMark:
    def test_outlives_a_lora_and_the_same_lora_on_the_clean_base_reads_nothing(self, learned):
        marked, record = learned
        deltas = lora_deltas(marked)
        with_lora, same_lora = copy.deepcopy(marked), learner()[0]
        for unet in (with_lora, same_lora):
            weights = dict(unet.named_parameters())
            for name, delta in deltas.items():
                weights[name].data += delta
        assert max(delta.abs().max() for delta in deltas.values()) > 1e-3
        assert verify(with_lora, KEY, record=record).verified
        assert verify(same_lora, KEY, record=record, trials=4).log10_p > -5
        assert verify(with_lora, KEY.child("wrong"), record=record, trials=4).log10_p > -5

    def test_outlives_fine_tuning(self, learned):
        record, (clean, data, scheduler) = learned[1], learner()
        tuned, control = (
            finetune(copy.deepcopy(unet).requires_grad_(True), data, scheduler, steps=60, lr=1e-3, batch_size=4)
            for unet in (learned[0], clean)
        )
        assert verify(tuned, KEY, record=record).verified
        assert verify(control, KEY, record=record, trials=4).log10_p > -5
        assert verify(tuned, KEY.child("wrong"), record=record, trials=4).log10_p > -5

    def test_verifies_by_its_own_masks_alone(self, learned):
        unet, record = learned
        report = verify(unet, KEY, record=record, early_stop=False, whiten=False, amplitudes=(1.0,), trials=4)
        assert report.verified and report.verification_rate > 0
        assert report.denoiser_evals == 4 * (1 + 3)  # of each trial a clean part and one for every out-site
        assert verify(unet, KEY.child("wrong"), record=record).log10_p > -5
        assert verify(learner()[0], KEY, record=record).log10_p > -5
        # To such a mark the masks of the other kind are wrong ones.
        assert verify(unet, KEY, record=dataclasses.replace(record, pairs=False)).log10_p > -5
        twin = verify(unet, KEY, record=record, clean_twin=learner()[0], early_stop=False, trials=4)
        assert twin.verified and any("beyond" in look["label"] and look["log10_p"] < -6 for look in twin.looks)

    def test_stops_early_when_it_holds(self):
        unet, data, scheduler = learner()
        config = EmbedConfig(**LEARN, steps=200, pairs=True, stop_bits=0.9, check_every=20)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        assert report.stopped is not None and report.stopped < 200 and report.reading.verified

    def test_is_kept_beside_another(self):
        unet, data, scheduler = learner(64)
        keys, records = [KEY.child(f"owner {i}") for i in range(2)], []
        for number, key in enumerate(keys):
            config = EmbedConfig(**LEARN, steps=30, pairs=True)
            further = {"keep": keys[:number], "earlier": records[-1]} if records else {}
            records.append(embed(unet, key, data, config, scheduler=scheduler, **further).record)
        assert all(verify(unet, k, record=r).verified for k, r in zip(keys, records, strict=True))
        clean = learner(64)[0]
        assert all(verify(clean, k, record=r).log10_p > -5 for k, r in zip(keys, records, strict=True))
        assert verify(unet, KEY.child("nobody"), record=records[0]).log10_p > -5


@pytest.mark.slow
class TestLearns:
    def test_unconditional_denoiser_learns_the_mark(self):
        unet, data, scheduler = learner()
        fields = {"steps": 60, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 3, "bank_size": 4}
        config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None, lineage=0)
        record = embed(unet, KEY, data, config, scheduler=scheduler).record
        assert verify(unet, KEY, record=record).log10_p < -6
        assert verify(unet, KEY.child("wrong"), record=record).log10_p > -5
        clean = learner()[0]
        assert verify(clean, KEY, record=record).log10_p > -5
