"""How latents are noised and what a denoiser predicts of them, by every kind of schedule that diffusers has."""

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    schedulers,
)

from aiao_diffusers.denoiser.schedule import describe_kind, has_betas, is_flow, noise_schedule, probe_timesteps
from aiao_diffusers.errors import ConfigError


LATENTS, NOISE, STEPS = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
KINDS = ("epsilon", "v_prediction", "sample")
FLOWS = {
    "plain": FlowMatchEulerDiscreteScheduler(),
    "shifted": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "by the picture's size": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    "towards the data": FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "of Wan": UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0),
    "of Sana": DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
}


class TestBetas:
    def test_noise_is_the_schedulers_own_to_the_bit(self):
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        found = noise_schedule(dict(scheduler.config))
        assert torch.equal(
            found.add_noise(LATENTS, NOISE, STEPS), scheduler.add_noise(LATENTS, NOISE, STEPS)
        ) and torch.equal(found.level(STEPS), STEPS)

    def test_cogvideox_shares_of_signal_are_its_own(self):
        scheduler = CogVideoXDDIMScheduler(snr_shift_scale=3.0)
        found = noise_schedule(dict(scheduler.config))
        assert torch.equal(found.alphas_cumprod, scheduler.alphas_cumprod)
        assert not torch.allclose(found.alphas_cumprod.float(), DDPMScheduler().alphas_cumprod)

    def test_target_is_what_the_schedule_says(self):
        wanted = {kind: noise_schedule({"prediction_type": kind}).target(LATENTS, NOISE, STEPS) for kind in KINDS}
        assert torch.equal(wanted["epsilon"], NOISE) and torch.equal(wanted["sample"], LATENTS)
        # v = sqrt(a) noise - sqrt(1 - a) latents
        a = DDPMScheduler().alphas_cumprod[STEPS].view(2, 1, 1, 1)
        assert torch.allclose(wanted["v_prediction"], a.sqrt() * NOISE - (1 - a).sqrt() * LATENTS)

    @pytest.mark.parametrize("ask", ["target", "noise_of"])
    def test_other_targets_are_refused(self, ask):
        with pytest.raises(ConfigError, match="prediction_type 'flow'"):
            getattr(noise_schedule({"prediction_type": "flow"}), ask)(LATENTS, NOISE, STEPS)


class TestFlow:
    # The times of sampling by the picture's size are not those of training.
    @pytest.mark.parametrize("name", [name for name in FLOWS if "size" not in name])
    def test_levels_are_the_schedulers_own_times(self, name):
        scheduler, found = FLOWS[name], noise_schedule({**FLOWS[name].config})
        scheduler.set_timesteps(found.steps)
        ours = found.level(torch.arange(found.steps))
        # A sampler of n steps may end a step early; every time it names lies on the line.
        times = scheduler.timesteps.double()
        distance = (times[:, None] - ours.double()[None]).abs().min(1).values
        assert distance.max() < 1.5

    def test_noise_and_velocity_are_the_schedulers_own(self):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        found = noise_schedule(dict(scheduler.config))
        level = found.level(STEPS)
        noised = scheduler.scale_noise(LATENTS, scheduler.timesteps[[10, 900]], NOISE)
        ours = found.add_noise(LATENTS, NOISE, found.step_of(scheduler.timesteps[[10, 900]]))
        assert torch.allclose(noised, ours, atol=1e-5) and level.is_floating_point()
        # One Euler step from s to 0 along the velocity arrives at the latents.
        share = (level / found.steps).view(2, 1, 1, 1)
        arrived = found.add_noise(LATENTS, NOISE, STEPS) - share * found.target(LATENTS, NOISE, STEPS)
        assert torch.allclose(arrived, LATENTS, atol=1e-5)

    def test_mochi_runs_towards_the_data(self):
        found = noise_schedule(dict(FLOWS["towards the data"].config))
        level = found.level(torch.tensor([0, 999]))
        assert level[0] > level[1] and torch.equal(found.target(LATENTS, NOISE, STEPS), LATENTS - NOISE)

    @pytest.mark.parametrize("shift", [-1.0, float("nan"), float("inf"), "3", [1], True])
    def test_a_shift_that_is_none_is_refused(self, shift):
        with pytest.raises(ConfigError, match="shift"):
            noise_schedule({"shift": shift, "num_train_timesteps": 1000})


class TestEverySchedule:
    @pytest.mark.parametrize(
        "config", [{"prediction_type": kind} for kind in KINDS] + [dict(s.config) for s in FLOWS.values()]
    )
    def test_noise_and_latents_are_found_again(self, config):
        noising = noise_schedule(config)
        noised, wanted = noising.add_noise(LATENTS, NOISE, STEPS), noising.target(LATENTS, NOISE, STEPS)
        assert torch.allclose(noising.noise_of(wanted, noised, STEPS), NOISE, atol=2e-3)
        assert torch.allclose(noising.latents_of(wanted, noised, STEPS), LATENTS, atol=2e-3)
        signal, loud = (amount[STEPS].view(2, 1, 1, 1) for amount in noising.amounts())
        assert torch.allclose(signal * LATENTS + loud * NOISE, noised, atol=1e-5)
        assert torch.equal(noising.step_of(noising.level(STEPS)), STEPS)


class TestKind:
    def test_of_every_scheduler_that_diffusers_has(self):
        kinds = {}
        for name in dir(schedulers):
            if not name.endswith("Scheduler"):
                continue
            try:
                config = {"_class_name": name, **getattr(schedulers, name)().config}
            except (AttributeError, ImportError, TypeError, ValueError):
                continue  # no scheduler by itself, or one that needs more than is installed
            kinds[name] = describe_kind(config)
            assert not (is_flow(config) and has_betas(config))
        flows = {name for name, kind in kinds.items() if kind == "flow matching"}
        others = {name for name, kind in kinds.items() if kind == "another kind"}
        assert {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"} <= flows
        assert {"EDMEulerScheduler", "SCMScheduler", "KarrasVeScheduler"} <= others
        assert {"DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler", "UniPCMultistepScheduler"} <= set(
            kinds
        ) - flows - others

    @pytest.mark.parametrize("config", [{"_class_name": "EDMEulerScheduler"}, {"sigma_data": 0.5}])
    def test_another_kind_is_refused_by_name(self, config):
        with pytest.raises(ConfigError, match=str(config.get("_class_name", "scheduler"))):
            noise_schedule(config)


def test_a_trial_leaves_the_ends_out():
    assert probe_timesteps(1000) == (100, 900)
