"""Two runs of other numbers of rows tell the call; `test_capture` runs whole pipelines."""

import pytest
import torch
from _families import Pipeline, texts

from aiao_diffusers.denoiser.derivation import derive, replayed
from aiao_diffusers.denoiser.recording import NotUnderstoodError, record
from aiao_diffusers.denoiser.rows import assembled


def runs(call, counts=(2, 3), dtype=torch.float32):
    pipe = Pipeline(call)
    pipe.transformer.to(dtype)
    prompts = ["ab", "cd", "ef"]
    heard = [
        record(
            pipe, pipe.transformer, {"prompt": prompts[:n], "num_inference_steps": 4, "generator": torch.Generator()}
        )
        for n in counts
    ]
    return pipe.transformer, heard[0].steps, heard[1].steps, counts


def plain(pipe, latents, t, prompts):
    return pipe.transformer(latents, timestep=t.expand(len(latents)), text=texts(prompts)).sample


def test_it_replays_and_a_replay_can_fail():
    denoiser, few, more, counts = runs(plain)
    found = derive(denoiser, few, more, counts)
    assert found.replay == 0 and set(found.rows) == {"text"}
    call, rows = assembled(found.call, found.rows)
    assert replayed(denoiser, call, {"text": rows["text"] + 1}, more[0]) > 0.1
    assert replayed(denoiser, call, {"text": rows["text"] * float("nan")}, more[0]) == float("inf")


def test_two_steps_tell_no_line():
    denoiser, few, more, counts = runs(plain)
    with pytest.raises(NotUnderstoodError, match="2 steps were heard, three are needed"):
        derive(denoiser, few, more[:2], counts)


def test_a_time_that_is_no_line():
    denoiser, few, more, counts = runs(
        lambda pipe, latents, t, prompts: pipe.transformer(latents, timestep=(t / 1e3) ** 2).sample
    )
    with pytest.raises(NotUnderstoodError, match="'timestep' is no line in the scheduler's time"):
        derive(denoiser, few, more, counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_times(dtype):
    def call(pipe, latents, t, prompts):
        return pipe.transformer(latents.to(dtype), timestep=t.to(dtype).expand(len(latents)) / 1000).sample

    found = derive(*runs(call, dtype=dtype))
    assert found.call.times == {"timestep": (0.001, 0.0)} and not found.call.single and found.replay == 0


def test_times_in_single_precision_beside_a_sample_in_half():
    def call(pipe, latents, t, prompts):
        return pipe.transformer(latents.bfloat16(), timestep=(t.expand(len(latents)) - 1) / 1).sample

    found = derive(*runs(call, dtype=torch.bfloat16))
    assert found.call.times == {"timestep": (1.0, -1.0)} and found.call.single and found.replay == 0


def test_a_scaled_sample_is_the_one_that_moves():
    def call(pipe, latents, t, prompts):
        wide = torch.ones(latents.shape)
        return pipe.transformer(wide if t < 0 else latents / 2, timestep=t.expand(len(latents)), text=wide).sample

    denoiser, few, more, counts = runs(call)
    found = derive(denoiser, few, more, counts)
    assert set(found.rows) == {"text"} and found.call.sample == ""


def test_times_become_floating_where_the_pipeline_makes_them_so():
    def call(pipe, latents, t, prompts):
        return pipe.transformer(latents, timestep=t.expand(len(latents)).float()).sample

    denoiser, few, more, counts = runs(call)
    for step in (*few, *more):  # of a scheduler that counts in whole numbers
        step.time = step.time.long()
    assert derive(denoiser, few, more, counts).call.floating is True


def test_no_sample():
    def call(pipe, latents, t, prompts):
        return pipe.transformer((10 * latents).long(), timestep=t).sample

    with pytest.raises(NotUnderstoodError, match=r"no argument looks like the scheduler's sample \(3, 3, 4\)"):
        derive(*runs(call))
