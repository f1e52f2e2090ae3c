"""The embedding engine on a miniature: what is trained, what is given back, early stop, earlier marks, bad input."""

import math
import sys
from contextlib import nullcontext

import pytest
import torch
from _tiny import LEARN, learner, tiny_unet
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, inject_adapter_in_model

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed, profile, verify
from aiao_diffusers.denoiser.price import measure_price
from aiao_diffusers.denoiser.schedule import noise_of, target
from aiao_diffusers.embedding.weight_change import LowRank, StoredWeights
from aiao_diffusers.errors import ConfigError, DataError, TrainingError, WrongBaseError


KEY = WatermarkKey(bytes(range(32)), "Demo")


def weights(unet):
    return [p.detach().clone() for p in unet.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def short(**changes):
    return EmbedConfig(**(LEARN | {"steps": 3} | changes))


class TestConfig:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *[("steps", v) for v in (0, 1.5, True, "9", None)],
            *[("lr", v) for v in (0, -1.0, float("nan"), float("inf"), "x")],
            *[("eps", -1.0), ("dec", float("nan")), ("train", "half"), ("lazy_share", 0), ("lazy_share", 1.1)],
            *[("accumulate", 0), ("accumulate", 13), ("stop_bits", 0.5), ("stop_bits", 1.1), ("max_unreadable", 1)],
            *[("seed", -1), ("rank", 0), ("check_every", 0), ("checkpoint_dir", 3), ("keep", -1)],
            *[("kept_share", 0), ("kept_share", 1.1), ("max_price", 0), ("max_price", float("nan"))],
            *[("anchor", -1), ("anchor", 2e3), ("loudest", 0.9), ("loudest", 101)],
        ],
    )
    def test_a_field_out_of_range_is_named(self, field, value):
        with pytest.raises(ConfigError, match=field):
            EmbedConfig(**{field: value})


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
    def test_gradient_checkpointing_is_refused_and_nothing_changes(self):
        unet, data, scheduler = learner()
        unet.enable_gradient_checkpointing()
        before = weights(unet)
        with pytest.raises(ConfigError, match="disable_gradient_checkpointing"):
            embed(unet, KEY, data, short(), scheduler=scheduler)
        assert same(weights(unet), before)

    def test_accumulation_changes_memory_and_not_the_result(self):
        results = []
        for accumulate in (1, 3):
            unet, data, scheduler = learner()
            report = embed(unet, KEY, data, short(accumulate=accumulate), scheduler=scheduler)
            results.append((weights(unet), report.history))
        for a, b in zip(*(r[0] for r in results), strict=True):
            assert torch.allclose(a, b, atol=2e-5)
        for a, b in zip(*(r[1] for r in results), strict=True):
            assert a == pytest.approx(b, rel=1e-3)
        unet, data, scheduler = learner()
        embed(unet, KEY, data, short(seed=1), scheduler=scheduler)
        assert any(not torch.allclose(a, b, atol=2e-5) for a, b in zip(weights(unet), results[0][0], strict=True))

    @pytest.mark.parametrize("train", ["lazy", "lora"])
    def test_subset_and_low_rank_train_no_more_than_they_say(self, train):
        unet, data, scheduler = learner()
        tuned = learner()[0]
        for number, p in enumerate(tuned.parameters()):
            p.data *= 1 + 0.001 * number
        found = profile(unet, tuned)
        before = dict(zip([n for n, _ in unet.named_parameters()], weights(unet), strict=True))
        report = embed(unet, KEY, data, short(train=train, rank=4), scheduler=scheduler, profile=found)
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

    def test_a_profile_of_another_model_is_refused_and_nothing_changes(self):
        unet, data, scheduler = learner()
        tuned = tiny_unet()
        tuned.conv_in.weight.data *= 2
        with pytest.raises(WrongBaseError):
            embed(unet, KEY, data, short(train="lazy"), scheduler=scheduler, profile=profile(tiny_unet(), tuned))
        assert same(weights(unet), weights(learner()[0]))

    def test_place_half_precision_flags_mode_and_random_state_come_back(self):
        unet, data, scheduler = learner()
        unet = unet.half()
        first = next(unet.parameters()).requires_grad_(False)
        state = torch.get_rng_state()
        report = embed(unet, KEY, data, short(), scheduler=scheduler)
        assert torch.equal(torch.get_rng_state(), state)
        # On a machine with a GPU, training was there.
        assert all(p.device.type == "cpu" and p.dtype == torch.float16 and p.grad is None for p in unet.parameters())
        assert not first.requires_grad and not unet.training
        assert all(p.requires_grad for p in list(unet.parameters())[1:])
        assert not same(weights(unet), weights(learner()[0].half()))
        assert 0 < report.price < 1

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
            embed(unet, KEY, data, short(), callback, scheduler=scheduler)
        assert moves[before[-1] :] == [torch.device("cpu")]

    def test_a_denoiser_on_several_devices_is_refused(self):
        unet, data, scheduler = learner()
        unet.conv_out.to("meta")
        with pytest.raises(ConfigError, match="spread over \\['cpu', 'meta'\\]"):
            embed(unet, KEY, data, short(), scheduler=scheduler)

    def test_a_mark_that_does_not_verify_is_said_to_be_weak(self):
        unet, data, scheduler = learner()
        with pytest.warns(UserWarning, match="too weak to be verified .not_verified, log10 p"):
            report = embed(unet, KEY, data, short(), scheduler=scheduler)
        assert report.reading.verdict == report.to_dict()["verdict"] == "not_verified"

    def test_report_logs_every_term_and_plots(self, tmp_path):
        unet, data, scheduler = learner()
        config = short(check_every=2, stop_bits=1.0)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        for row, corr in zip(report.history, (0.2 + 0.8 / 9, 1.0, 1.0), strict=True):
            terms = sum(getattr(config, name) * row[name] for name in ("resp", "pres", "eps", "dec", "proj"))
            assert row["loss"] == pytest.approx(terms + config.corr * corr * row["corr"], rel=1e-4)
        assert [step for step, row in enumerate(report.history, 1) if "bits" in row] == [2]
        assert report.to_dict()["trained"] == sum(p.numel() for p in unet.parameters())
        figure = report.plot()
        figure.savefig(tmp_path / "curves.png")
        assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 7

    def test_looking_does_not_change_the_training(self):
        looked, plain = learner(), learner()
        embed(looked[0], KEY, looked[1], short(check_every=1, stop_bits=1.0), scheduler=looked[2])
        embed(plain[0], KEY, plain[1], short(), scheduler=plain[2])
        assert same(weights(looked[0]), weights(plain[0]))


class TestTarget:
    def test_is_what_the_schedule_says(self):
        latents, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
        schedules = {kind: DDPMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")}
        wanted = {kind: target(schedule, latents, noise, t) for kind, schedule in schedules.items()}
        assert torch.equal(wanted["epsilon"], noise) and torch.equal(wanted["sample"], latents)
        # v = sqrt(a) noise - sqrt(1 - a) latents
        a = schedules["epsilon"].alphas_cumprod[t].view(2, 1, 1, 1)
        assert torch.allclose(wanted["v_prediction"], a.sqrt() * noise - (1 - a).sqrt() * latents)
        with pytest.raises(ConfigError, match="prediction_type 'flow'"):
            target(DDPMScheduler(prediction_type="flow"), latents, noise, t)

    def test_its_noise_is_found_again(self):
        latents, noise, t = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
        for kind in ("epsilon", "v_prediction", "sample"):
            noising = DDPMScheduler(prediction_type=kind)
            noised = noising.add_noise(latents, noise, t)
            found = noise_of(noising, target(noising, latents, noise, t), noised, t)
            assert torch.allclose(found, noise, atol=1e-3)
        with pytest.raises(ConfigError, match="prediction_type 'flow'"):
            noise_of(DDPMScheduler(prediction_type="flow"), latents, noise, t)

    def test_price_of_a_v_prediction_model_is_over_its_own_loss(self):
        unet, data, _ = learner()
        losses = [
            measure_price(unet, unet, data, DDPMScheduler(prediction_type=kind), samples=32)["loss"]
            for kind in ("epsilon", "v_prediction")
        ]
        assert losses[0] != losses[1]


class TestBadInput:
    def test_not_finite_loss_stops_and_gives_the_weights_back(self):
        unet, data, scheduler = learner()
        before = weights(unet)
        with pytest.raises(TrainingError, match="lower lr"):
            embed(unet, KEY, data, short(steps=40, lr=1e12, anchor=0.0), scheduler=scheduler)
        assert same(weights(unet), before)

    def test_not_finite_loss_keeps_the_last_good_checkpoint(self, tmp_path):
        unet, data, scheduler = learner()
        config = short(steps=40, checkpoint_every=2, checkpoint_dir=tmp_path / "state")

        def break_it(step, row):
            if step == 5:
                next(unet.parameters()).data.fill_(float("nan"))

        with pytest.raises(TrainingError, match="step 6"):
            embed(unet, KEY, data, config, break_it, scheduler=scheduler)
        assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-0000004"]
        assert same(weights(unet), weights(learner()[0]))

    def test_after_a_failure_the_same_model_can_be_tried_again(self):
        unet, data, scheduler = learner()
        with pytest.raises(TrainingError, match="lower lr"):
            embed(unet, KEY, data, short(steps=40, lr=1e12, anchor=0.0), scheduler=scheduler)
        assert all(p.grad is None for p in unet.parameters())
        again = embed(unet, KEY, data, short(), scheduler=scheduler).record
        assert (
            again.marked_sha256 == embed(*learner()[:1], KEY, data, short(), scheduler=scheduler).record.marked_sha256
        )

    def test_gradients_of_the_users_own_training_do_not_count(self):
        (unet, data, scheduler), fresh = learner(), learner()[0]
        for p in unet.parameters():
            p.grad = torch.ones_like(p)
        one, other = (embed(m, KEY, data, short(), scheduler=scheduler).record for m in (unet, fresh))
        assert one.marked_sha256 == other.marked_sha256

    @pytest.mark.parametrize("train", ["full", "lazy"])
    def test_an_interrupt_while_the_record_is_made_gives_the_weights_back(self, monkeypatch, train):
        def stop(*args):
            raise KeyboardInterrupt

        # The package's name `embed` is the function; the module is reached by its path.
        monkeypatch.setattr(sys.modules["aiao_diffusers.embedding.embed"], "make_record", stop)
        unet, data, scheduler = learner()
        with pytest.raises(KeyboardInterrupt):
            embed(unet, KEY, data, short(train=train), scheduler=scheduler)
        assert same(weights(unet), weights(learner()[0]))

    def test_what_was_trained_is_kept_until_the_record_is_made(self, monkeypatch, tmp_path):
        def stop(*args):
            raise KeyboardInterrupt

        folder, steps = tmp_path / "state", []
        config = short(checkpoint_every=1, checkpoint_dir=folder)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["aiao_diffusers.embedding.embed"], "make_record", stop)
            unet, data, scheduler = learner()
            with pytest.raises(KeyboardInterrupt):
                embed(unet, KEY, data, config, scheduler=scheduler)
        (folder / "notes.txt").write_text("the user's own")
        embed(unet, KEY, data, config, lambda step, row: steps.append(step), scheduler=scheduler)
        assert steps == []
        assert [p.name for p in folder.iterdir()] == ["notes.txt"]

    def test_accelerate_leaves_no_trace(self, monkeypatch):
        def stop(step, row):
            raise KeyboardInterrupt

        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        AcceleratorState._reset_state(True)
        try:
            unet, data, scheduler = learner()
            before = set(vars(unet))
            with pytest.raises(KeyboardInterrupt):
                embed(unet, KEY, data, short(), stop, scheduler=scheduler)
            assert set(vars(unet)) == before
            sample, time = torch.randn(2, 3, 8, 8), torch.tensor([3, 500])
            with torch.no_grad():
                assert torch.equal(unet(sample, time).sample, learner()[0](sample, time).sample)
            embed(unet, KEY, data, short(), scheduler=scheduler)
            assert set(vars(unet)) == before
        finally:
            AcceleratorState._reset_state(True)

    def test_earlier_marks_need_their_record(self):
        unet, data, scheduler = learner()
        with pytest.raises(ConfigError, match="earlier="):
            embed(unet, KEY, data, short(), scheduler=scheduler, keep=[KEY.child("first")])

    def test_a_denoiser_that_predicts_variances_too(self):
        torch.manual_seed(0)
        unet, data, scheduler = learner()
        unet = type(unet).from_config({**unet.config, "out_channels": 2 * unet.config.in_channels}).eval()
        report = embed(unet, KEY, data, short(), scheduler=scheduler)
        assert math.isfinite(report.price) and len(report.history) == short().steps

    def test_a_flow_has_no_betas(self):
        unet, data, _ = learner()
        with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler has no betas"):
            embed(unet, KEY, data, short(), scheduler=FlowMatchEulerDiscreteScheduler())

    @pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1e-3}, {"train": "lora"}])
    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path, change):
        fields = {"checkpoint_every": 1, "checkpoint_dir": tmp_path / "state"}

        def stop(step, row):
            raise KeyboardInterrupt

        unet, data, scheduler = learner()
        with pytest.raises(KeyboardInterrupt):
            embed(unet, KEY, data, short(**fields), stop, scheduler=scheduler)
        with pytest.raises(TrainingError, match="another run"):
            embed(unet, KEY, data, short(**fields, **change), scheduler=scheduler)
        with pytest.raises(TrainingError, match="another run"):
            embed(unet, KEY.child("x"), data, short(**fields), scheduler=scheduler)
        (tmp_path / "state/step-0000001/state.safetensors").write_bytes(b"cut")
        with pytest.raises(TrainingError, match="damaged"):
            embed(unet, KEY, data, short(**fields), scheduler=scheduler)

    def test_latents_of_another_model_are_refused(self):
        unet, _, scheduler = learner()
        with pytest.raises(DataError, match="do not fit"):
            embed(unet, KEY, LatentData(torch.randn(4, 4, 8, 8), {}), short(), scheduler=scheduler)
        with pytest.raises(DataError, match="do not fit"):
            embed(tiny_unet(), KEY, LatentData(torch.randn(4, 4, 8, 8), {}), short(), scheduler=scheduler)

    def test_an_attached_adapter_is_refused(self):
        unet, data, scheduler = learner()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), unet)
        with pytest.raises(ConfigError, match="unload_lora"):
            embed(unet, KEY, data, short(), scheduler=scheduler)


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

    def test_three_keys_verify_where_earlier_ones_are_kept(self):
        unet, data, scheduler = learner(64)
        keys, records = [KEY.child(f"owner {i}") for i in range(3)], []
        for number, key in enumerate(keys):
            config = EmbedConfig(**LEARN, steps=50)
            further = {"keep": keys[:number], "earlier": records[-1]} if records else {}
            records.append(embed(unet, key, data, config, scheduler=scheduler, **further).record)
        assert all(verify(unet, k, record=r).verified for k, r in zip(keys, records, strict=True))
        assert verify(unet, KEY.child("nobody"), record=records[0]).log10_p > -5
        clean = learner(64)[0]
        assert all(verify(clean, k, record=r).log10_p > -5 for k, r in zip(keys, records, strict=True))
