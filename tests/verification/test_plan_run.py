"""Walking a plan: what is seen decides when it ends, never what is looked at next."""

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers import LatentData, WatermarkKey, embed, verify
from aiao_diffusers.embedding.config import EmbedConfig
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.verification.plan import Futility, ReadingPlan


KEY = WatermarkKey(bytes(range(32)), "A")


@pytest.fixture(scope="module")
def record():
    generator = torch.Generator().manual_seed(0)
    data = LatentData(
        torch.randn(12, 4, 8, 8, generator=generator),
        {"encoder_hidden_states": torch.randn(12, 5, 12, generator=generator)},
    )
    config = EmbedConfig(steps=1, in_sites=1, out_sites=2, batch_size=2, max_price=None)
    from diffusers import DDIMScheduler

    with pytest.warns(UserWarning, match="too weak"):
        return embed(tiny_unet(), KEY, data, config, scheduler=DDIMScheduler()).record


def read(record, seed: int, plan: ReadingPlan):
    return verify(tiny_unet(), KEY, record=record, plan=plan)


class TestFutility:
    @pytest.mark.slow
    def test_a_negative_costs_eight_evaluations_and_says_so(self, record):
        ended = {}
        for seed in range(40):
            report = read(record, seed, ReadingPlan.fast(seed=seed))
            assert report.verdict == "not_verified" and report.plan["name"] == "fast"
            ended.setdefault(report.plan["ended"], []).append(report.denoiser_evals)
            if report.plan["ended"] == "futile":
                assert any("read by the thorough plan" in text for text in report.warnings)
        assert set(ended["futile"]) == {8} and len(ended["futile"]) >= 30  # .05 by hits or ranks: about 37 of 40
        assert set(ended) <= {"futile", "all looks taken"} and set(ended.get("all looks taken", {128})) == {128}

    def test_what_was_seen_before_it_ended_is_what_thorough_saw(self, record):
        fast, thorough = (read(record, 3, plan) for plan in (ReadingPlan.fast(seed=3), ReadingPlan.thorough(seed=3)))
        assert fast.looks == thorough.looks[: len(fast.looks)] and thorough.denoiser_evals == 128
        assert thorough.plan["name"] == "thorough" and thorough.plan["ended"] == "all looks taken"

    def test_a_hopeful_reading_goes_on(self, record):
        report = read(record, 0, ReadingPlan(seed=0, futility=Futility(alpha=0.999)))
        assert report.plan["ended"] == "all looks taken" and report.denoiser_evals == 128

    def test_offers_are_looked_at_all_the_same(self, record):
        twin = tiny_unet()
        with torch.no_grad():
            twin.conv_in.weight.add_(0.1)
        import dataclasses

        from aiao_diffusers.denoiser.hashes import weights_sha256

        named = dataclasses.replace(record, teacher_sha256=weights_sha256(twin))
        plan = ReadingPlan(futility=Futility(alpha=1e-9))
        report = verify(tiny_unet(), KEY, record=named, clean_twin=twin, plan=plan)
        assert report.plan["ended"] == "futile"
        assert [look["label"] for look in report.looks][-1] == "beyond the twin x1, ranks"
        assert report.denoiser_evals == 8 + 4 * 8

    def test_fewer_trials_than_it_waits_for(self, record):
        report = read(record, 0, ReadingPlan(trials=2, futility=Futility(alpha=1e-9)))
        assert report.plan["ended"] == "futile" and report.denoiser_evals == 4


class TestArguments:
    def test_a_plan_and_its_fields_are_refused_together(self, record):
        with pytest.raises(ConfigError, match=r"\['alpha', 'trials'\] are fields of the plan"):
            verify(tiny_unet(), KEY, record=record, plan=ReadingPlan(), alpha=1e-3, trials=2)

    def test_fields_alone_make_a_thorough_plan(self, record):
        report = verify(tiny_unet(), KEY, record=record, alpha=1e-3, trials=1, whiten=False, amplitudes=[1.0])
        assert (report.plan["name"], report.alpha, report.trials) == ("thorough", 1e-3, 1)
        assert report.plan["looks"] == ["amplitude x1", "amplitude x1, ranks"]

    def test_former_names_warn_and_work(self, record):
        with pytest.warns(FutureWarning, match="clean_base= is now controls="):
            report = verify(
                tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), whiten=False, clean_base=tiny_unet(3)
            )
        assert report.controls["clean_base"]["verdict"] == "not_verified"
        with (
            pytest.warns(FutureWarning, match="twin= is now clean_twin="),
            pytest.raises(ConfigError, match="clean_twin is"),
        ):
            verify(tiny_unet(), KEY, record=record, twin=True)
        with pytest.warns(FutureWarning), pytest.raises(ConfigError, match="pass controls= alone"):
            verify(tiny_unet(), KEY, record=record, clean_base=tiny_unet(3), controls=tiny_unet(4))

    def test_an_unknown_name_is_no_option(self, record):
        with pytest.raises(TypeError, match="'trails'"):
            verify(tiny_unet(), KEY, record=record, trails=3)

    def test_controls_are_named(self, record):
        few = ReadingPlan(trials=1, amplitudes=(1.0,), whiten=False)
        report = verify(tiny_unet(), KEY, record=record, plan=few, controls=[tiny_unet(3), tiny_unet(4)])
        assert set(report.controls) == {
            "wrong_response",
            "UNet2DConditionModel (1)",
            "UNet2DConditionModel (2)",
        }
        report = verify(tiny_unet(), KEY, record=record, plan=few, controls={"another": tiny_unet(3)})
        assert report.controls["another"]["verdict"] == "not_verified"


def test_the_plan_stands_in_the_report(record):
    report = read(record, 3, ReadingPlan.fast(seed=3))
    assert (
        f"- plan: fast, {len(report.looks)} of 16 looks taken, in an order fixed beforehand; ended: futile"
        in report.to_markdown()
    )
