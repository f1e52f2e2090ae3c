"""Embedding goes on from its checkpoint to the same weights, and from no other run's."""

import sys

import pytest
import torch
from _tiny import few_steps, learner, same, weights

from aiao_diffusers import EmbedConfig, WatermarkKey, embed
from aiao_diffusers.errors import TrainingError


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestCheckpoints:
    @pytest.mark.slow
    def test_not_finite_loss_keeps_the_last_good_checkpoint(self, tmp_path):
        unet, data, scheduler = learner()
        config = few_steps(steps=40, checkpoint_every=2, checkpoint_dir=tmp_path / "state")

        def break_it(step, row):
            if step == 5:
                next(unet.parameters()).data.fill_(float("nan"))

        with pytest.raises(TrainingError, match="step 6"):
            embed(unet, KEY, data, config, break_it, scheduler=scheduler)
        assert [p.name for p in (tmp_path / "state").iterdir()] == ["step-0000004"]
        assert same(weights(unet), weights(learner()[0]))

    @pytest.mark.slow
    def test_what_was_trained_is_kept_until_the_record_is_made(self, monkeypatch, tmp_path):
        def stop(*args):
            raise KeyboardInterrupt

        folder, steps = tmp_path / "state", []
        config = few_steps(checkpoint_every=1, checkpoint_dir=folder)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["aiao_diffusers.embedding.embed"], "make_record", stop)
            unet, data, scheduler = learner()
            with pytest.raises(KeyboardInterrupt):
                embed(unet, KEY, data, config, scheduler=scheduler)
        (folder / "notes.txt").write_text("the user's own")
        embed(unet, KEY, data, config, lambda step, row: steps.append(step), scheduler=scheduler)
        assert steps == []
        assert [p.name for p in folder.iterdir()] == ["notes.txt"]

    @pytest.mark.slow
    @pytest.mark.parametrize("change", [{"seed": 1}, {"lr": 1e-3}, {"train": "lora"}])
    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path, change):
        fields = {"checkpoint_every": 1, "checkpoint_dir": tmp_path / "state"}

        def stop(step, row):
            raise KeyboardInterrupt

        unet, data, scheduler = learner()
        with pytest.raises(KeyboardInterrupt):
            embed(unet, KEY, data, few_steps(**fields), stop, scheduler=scheduler)
        with pytest.raises(TrainingError, match="another run"):
            embed(unet, KEY, data, few_steps(**fields, **change), scheduler=scheduler)
        with pytest.raises(TrainingError, match="another run"):
            embed(unet, KEY.child("x"), data, few_steps(**fields), scheduler=scheduler)
        (tmp_path / "state/step-0000001/state.safetensors").write_bytes(b"cut")
        with pytest.raises(TrainingError, match="damaged"):
            embed(unet, KEY, data, few_steps(**fields), scheduler=scheduler)


@pytest.mark.slow
class TestResume:
    def test_resumes_to_the_same_weights(self, tmp_path):
        fields = {"steps": 6, "batch_size": 2, "in_sites": 1, "out_sites": 1, "checkpoint_every": 3, "bank_size": 2}
        whole, data, scheduler = learner()
        embed(whole, KEY, data, EmbedConfig(**fields), scheduler=scheduler)
        cut = learner()[0]
        before = [p.clone() for p in cut.parameters()]
        config = EmbedConfig(**fields, checkpoint_dir=tmp_path / "state")

        def stop(step, row):
            if step == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            embed(cut, KEY, data, config, stop, scheduler=scheduler)
        assert all(torch.equal(a, b) for a, b in zip(before, cut.parameters(), strict=True))  # nothing half-marked
        embed(cut, KEY, data, config, scheduler=scheduler)
        for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
        assert not (tmp_path / "state").exists()
