"""What a pipeline does is heard step by step, and the pipeline is put back."""

import copy
import inspect

import pytest
import torch
from _families import Pipeline, texts

from aiao_diffusers.denoiser.recording import NotRunError, NotUnderstoodError, listen, record, sign_of, without_guiders


PROMPTS = ["ab", "c"]


def plain(pipe, latents, t, prompts):
    return pipe.transformer(latents, timestep=t, text=texts(prompts)).sample


def given(**more):
    return {"prompt": PROMPTS, "num_inference_steps": 5, "generator": torch.Generator().manual_seed(0), **more}


def test_three_steps_are_kept_and_the_last_latents():
    pipe = Pipeline(plain)
    heard = record(pipe, pipe.transformer, given())
    assert len(heard.steps) == 3 and torch.equal(heard.last, pipe(**given()))
    first = heard.steps[0]
    assert torch.equal(first.used.arguments["text"], texts(PROMPTS)) and torch.equal(first.used.predicted, first.given)
    assert float(first.time) == 1000 and first.exact == 1000 and first.sample.shape == (2, 3, 4)
    assert float(first.unrounded().time) == first.exact


def test_later_changes_in_place_are_not_heard():
    table = torch.zeros(2)

    def call(pipe, latents, t, prompts):
        table.add_(1)
        made = pipe.transformer(latents, timestep=t, tables=[table]).sample
        return made

    pipe = Pipeline(call)
    seen = [step.used.arguments["tables"][0] for step in record(pipe, pipe.transformer, given()).steps]
    assert [int(value[0]) for value in seen] == [1, 2, 3]


def test_a_run_ends_where_nothing_more_is_wanted():
    pipe, freed = Pipeline(plain), []
    pipe.maybe_free_model_hooks = lambda: freed.append(1)
    assert len(record(pipe, pipe.transformer, given(), until=1).steps) == 1 and freed == [1]


def test_a_mixed_prediction_ends_the_run_unless_it_is_asked_for():
    pipe = Pipeline(lambda *args: plain(*args) + plain(*args))
    with pytest.raises(
        NotUnderstoodError, match=r"given \(2, 3, 4\), which is none of .* \(\(2, 3, 4\), \(2, 3, 4\)\)"
    ):
        record(pipe, pipe.transformer, given())
    assert record(pipe, pipe.transformer, given(), guided=True).steps[0].used is None


def test_a_pipeline_that_fails():
    pipe = Pipeline(lambda *_: [][0])
    with pytest.raises(NotRunError, match="Pipeline does not run: .*IndexError"):
        record(pipe, pipe.transformer, given())


def test_a_copy_of_the_scheduler_steps_alone():
    def call(pipe, latents, t, prompts):
        if pipe.scheduler.step_index is None:
            pipe.other = copy.deepcopy(pipe.scheduler)
        pipe.other.step(latents, t, latents)
        return plain(pipe, latents, t, prompts)

    pipe = Pipeline(call)
    heard = record(pipe, pipe.transformer, given(num_inference_steps=3))
    assert len(heard.steps) == 3 and pipe.other.step_index == pipe.scheduler.step_index == 3


def test_a_step_that_its_owner_replaced_is_put_back():
    pipe = Pipeline(plain)
    theirs = pipe.scheduler.step = pipe.scheduler.step
    with listen(pipe, pipe.transformer, stop_at_mixed=True):
        assert "model_output" in inspect.signature(pipe.scheduler.step).parameters
        assert pipe.scheduler.step is not theirs
    assert pipe.scheduler.__dict__["step"] is theirs


@pytest.mark.parametrize(("change", "sign"), [(1, 1.0), (-1, -1.0), (0.99, 0.0)])
def test_how_a_prediction_is_given(change, sign):
    value = torch.randn(2, 3, 4)
    assert sign_of(value, change * value) == sign
    assert sign_of(value.unsqueeze(1), change * value) == sign_of(torch.cat([value, value], 1), change * value) == sign
    assert sign_of(value, torch.randn(2, 5, 4)) == 0.0


class Guider:
    def __init__(self, enabled):
        self.enabled = enabled

    def disable(self):
        self.enabled = False

    def enable(self):
        self.enabled = True

    def get_state(self):
        return {"enabled": self.enabled}


def test_guiders_are_off_for_the_block_alone():
    class Guided:
        components = {"guider": Guider(True), "other": Guider(False), "vae": None}

    with pytest.raises(ZeroDivisionError), without_guiders(Guided) as any_there:
        assert any_there and not Guided.components["guider"].enabled
        _ = 1 / 0
    assert [part.enabled for part in (Guided.components["guider"], Guided.components["other"])] == [True, False]
