"""A denoiser's call is learnt from its pipeline, and only if replaying it gives again what the scheduler was given."""

from types import SimpleNamespace

import pytest
import torch
from _families import Denoiser, Pipeline, mask, texts
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.call import UNET_CALL, evaluate
from aiao_diffusers.denoiser.capture import capture_rows, learn
from aiao_diffusers.errors import ConfigError, DataError


MANY = ["a", "two red foxes", "a cat", "the longest of all these prompts", "rain"]


def plain(pipe, latents, t, prompts):
    return pipe.transformer(latents, timestep=t.expand(len(latents)), text=texts(prompts, 40), return_dict=False)[0]


def with_mask(pipe, latents, t, prompts):
    keywords = {"text": texts(prompts), "mask": mask(prompts)}
    return pipe.transformer(latents, timestep=t.expand(len(latents)), **keywords, return_dict=False)[0]


def guided(pipe, latents, t, prompts):
    """As Stable Diffusion: doubled at any scale above one."""
    if pipe.guidance <= 1:
        return plain(pipe, latents, t, prompts)
    both = pipe.transformer(torch.cat([latents] * 2), timestep=t, text=texts([""] * len(prompts) + prompts, 40)).sample
    empty, wanted = both.chunk(2)
    return empty + pipe.guidance * (wanted - empty)


class TestLearn:
    def test_rows_and_what_is_shared(self):
        table = torch.rand(5, 2)

        def call(pipe, latents, t, prompts):
            keywords = {"tables": (table, table.T), "wide": texts(prompts, 40).movedim(0, 1), "flag": True}
            keywords |= {"shapes": [(1, 2)] * len(prompts), "attention_kwargs": {}, "text": texts(prompts, 40)}
            return pipe.transformer(latents, timestep=t.expand(len(latents)) / 1000, **keywords).sample

        found = learn(Pipeline(call), ["a", "bc", "def", "g"])
        assert set(found.data.conditioning) == {"text", "wide"} and len(found.data) == 4
        assert torch.equal(found.data.conditioning["text"], texts(["a", "bc", "def", "g"], 40))
        assert torch.equal(found.call.shared["tables.0"], table) and found.call.axes == {"wide": 1}
        assert found.call.fixed == {"flag": True} and found.call.each == {"shapes": (1, 2)}
        assert found.call.times == {"timestep": (0.001, 0.0)} and found.replay <= 1e-5
        assert found.data.latents.shape == (4, 3, 4) and found.data.latents.dtype == torch.float32

    def test_a_plain_call_is_a_unets(self):
        found = learn(Pipeline(plain))
        assert found.call == UNET_CALL and len(found.data) == 3 and found.denoiser == "transformer"

    @pytest.mark.parametrize("line", [(1.0, 0.0), (1e-3, 0.0), (-1e-3, 1.0), (1.0, -1.0), (0.5, 7.0)])
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_times_and_sign(self, line, sign):
        def call(pipe, latents, t, prompts):
            time = (t.expand(len(latents)) + line[1] / line[0]) / round(1 / line[0]) if line[0] != 0.5 else t * 0.5 + 7
            return sign * pipe.transformer(latents, timestep=time).sample

        found = learn(Pipeline(call))
        assert found.call.times == {"timestep": pytest.approx(line)} and found.call.sign == sign

    def test_lists_an_axis_of_one_and_texts_of_several_lengths(self):
        def call(pipe, latents, t, prompts):
            rows = [texts([prompt])[0] for prompt in prompts]
            made = pipe.transformer(list(latents.unsqueeze(2)), timestep=t.expand(len(latents)), text=rows).sample
            return made.squeeze(2)

        pipe = Pipeline(call)
        found = learn(pipe)
        assert found.call.sample == "hidden_states" and found.call.unit_axis == 2 and found.call.ragged == ("text",)
        assert set(found.call.listed) == {"hidden_states", "text"}
        rows = capture_rows(pipe, MANY, found, batch=2)
        assert rows.conditioning["rows_of.text"].tolist() == [len(prompt) for prompt in MANY]
        assert torch.equal(rows.conditioning["text"], texts(MANY))

    def test_channels_beside_the_sample(self):
        def call(pipe, latents, t, prompts):
            wider = torch.cat([latents, texts(prompts, 40)[:, :2, :4]], 1)
            return pipe.transformer(wider, timestep=t.expand(len(latents))).sample[:, :3]

        found = learn(Pipeline(call), ["abc", "de", "fgh"])
        assert found.call.beside == ("beside", 1)
        assert torch.equal(found.data.conditioning["beside"], texts(["abc", "de", "fgh"], 40)[:, :2, :4])

    def test_guidance_is_switched_off_only_where_it_doubles(self):
        found = learn(Pipeline(guided))
        assert found.options == found.off == {"guidance_scale": 1.0}
        assert learn(Pipeline(plain)).options == {}
        assert learn(Pipeline(guided), options={"guidance_scale": 0.5, "size": 6}).off == {}

    def test_the_part_that_counts_of_a_call_that_is_always_doubled(self):
        def call(pipe, latents, t, prompts):
            rows = texts([""] * len(prompts) + prompts, 40)
            empty, wanted = pipe.transformer(torch.cat([latents] * 2), timestep=t, text=rows).sample.chunk(2)
            return empty + pipe.guidance * (wanted - empty)

        found = learn(Pipeline(call), ["ab", "c", "def"])
        assert torch.equal(found.data.conditioning["text"], texts(["ab", "c", "def"], 40))

    def test_it_replays_from_a_file(self, tmp_path):
        pipe = Pipeline(with_mask)
        found = learn(pipe, MANY)
        found.data.save(tmp_path / "d.safetensors", torch.float32)
        again = LatentData.load(tmp_path / "d.safetensors")
        latents, level = torch.randn(5, 3, 4), torch.full((5,), 321.0)
        wanted = with_mask(pipe, latents, level[0], MANY)
        assert torch.equal(evaluate(pipe.transformer, latents, level, again.keywords()), wanted)

    def test_a_sampler_of_betas_that_counts_in_fractions_has_the_plain_call(self):
        def call(pipe, latents, t, prompts):
            return pipe.transformer(latents.bfloat16(), timestep=t.expand(len(latents))).sample

        pipe = Pipeline(call)
        pipe.transformer.bfloat16()
        assert learn(pipe).call.single
        pipe.scheduler = EulerDiscreteScheduler()
        assert learn(pipe).call == UNET_CALL

    def test_a_pipeline_without_prompts(self):
        found = learn(DDPMPipeline(tiny_unconditional(), DDPMScheduler()))
        assert found.call == UNET_CALL and not found.data.conditioning and len(found.data) == 3

    def test_the_pipeline_is_left_as_it_was(self):
        pipe = Pipeline(plain)
        pipe.transformer.train()
        for other in (plain, lambda *_: 1 / 0):
            pipe.call = other
            if other is plain:
                learn(pipe)
            else:
                with pytest.raises(DataError, match="does not run: .*ZeroDivisionError"):
                    learn(pipe)
            assert "step" not in pipe.scheduler.__dict__ and not pipe.transformer._forward_hooks
            assert pipe.transformer.training and pipe._progress_bar_config == {}


class TestRefusals:
    def test_a_prediction_that_is_altered_on_its_way_to_the_scheduler(self):
        pipe = Pipeline(lambda *given: 0.9 * plain(*given))
        with pytest.raises(DataError, match=r"Pipeline calls its Denoiser.*alters them; pass data=LatentData"):
            learn(pipe)
        assert max(pipe.runs) == 2  # it was stopped at the first step

    def test_what_is_made_anew_at_each_step(self):
        def call(pipe, latents, t, prompts):
            moving = torch.sin(t * 3.0 + texts(prompts, 40))
            return pipe.transformer(latents, timestep=t.expand(len(latents)), text=moving).sample

        with pytest.raises(DataError, match="replaying the call differs by .*'text' changes from step to step"):
            learn(Pipeline(call))

    def test_an_object_that_acts(self):
        class Cache:
            pass

        def call(pipe, latents, t, prompts):
            pipe.transformer.scale.data.fill_(2.0)
            made = pipe.transformer(latents, timestep=t.expand(len(latents)), cache=Cache()).sample
            pipe.transformer.scale.data.fill_(0.7)
            return made

        with pytest.raises(DataError, match="replaying the call differs"):
            learn(Pipeline(call))

    @pytest.mark.parametrize(
        ("keywords", "words"),
        [
            ({"text": lambda n: torch.zeros(2 * n, 3, 6)}, "'text' has 6 rows for 3"),
            ({"tables": lambda n: (torch.full((4,), float(n)),)}, "'tables.0' differs from run to run"),
            ({"shapes": lambda n: [(i,) for i in range(n)]}, "'shapes' is a list of rows that are no tensors"),
            ({"flag": lambda n: n == 3}, "'flag' is False in one run and True"),
            ({"attention_kwargs": lambda n: {"scale": 1.0}}, "no valid argument: 'attention_kwargs.scale'"),
        ],
    )
    def test_arguments_that_no_call_says(self, keywords, words):
        def call(pipe, latents, t, prompts):
            given = {name: make(len(prompts)) for name, make in keywords.items()}
            return pipe.transformer(latents, timestep=t.expand(len(latents)), **given).sample

        with pytest.raises(DataError, match=words):
            learn(Pipeline(call))

    def test_no_time(self):
        pipe = Pipeline(lambda pipe, latents, t, prompts: pipe.transformer(latents, timestep=torch.zeros(1)).sample)
        with pytest.raises(DataError, match="no argument follows the scheduler's time"):
            learn(pipe)

    def test_a_denoiser_that_is_never_called_or_not_there(self):
        with pytest.raises(DataError, match="called its transformer, a Denoiser, before 0 of its scheduler's 3 steps"):
            learn(Pipeline(lambda pipe, latents, t, prompts: latents))
        with pytest.raises(DataError, match=r"no denoiser 'transformer_2': its modules are \['transformer'\]"):
            learn(Pipeline(plain), denoiser="transformer_2")
        for other in (Denoiser(), SimpleNamespace(), None):
            with pytest.raises(DataError, match="no denoiser that a scheduler drives"):
                learn(other)

    def test_before_anything_runs(self):
        pipe = Pipeline(plain)
        for wrong, words in (
            ({"options": {"hight": 8}}, "no option 'hight'"),
            ({"rows": {"size": [1, 2]}}, "'size': 2.* entries: 3 are needed"),
            ({"prompts": []}, "no prompts"),
            ({"prompts": [3]}, "no prompts"),
        ):
            with pytest.raises(DataError, match=words):
                learn(pipe, **wrong)
        pipe.scheduler = EDMEulerScheduler()
        with pytest.raises(ConfigError, match="'EDMEulerScheduler' is of no known kind"):
            learn(pipe)
        with pytest.raises(DataError, match="takes no prompts"):
            learn(DDPMPipeline(tiny_unconditional(), DDPMScheduler()), ["a cat"])
        assert not pipe.runs


class TestRows:
    @pytest.mark.parametrize("call", [plain, with_mask, guided])
    def test_batches_are_padded_to_one_length(self, call):
        pipe = Pipeline(call)
        found = learn(pipe)
        batches, whole = (capture_rows(pipe, MANY, found, batch=batch) for batch in (2, 5))
        assert set(batches.conditioning) == set(found.data.conditioning) and len(batches) == 5
        for name, value in whole.conditioning.items():
            assert torch.equal(batches.conditioning[name], value), name

    def test_lengths_that_follow_the_batch_are_refused_where_nothing_pads_them(self):
        def call(pipe, latents, t, prompts):
            cut = texts(prompts)[:, : 1 + (prompts[0] == "rain")]
            return pipe.transformer(latents, timestep=t.expand(len(latents)), text=cut).sample

        pipe = Pipeline(call)
        with pytest.raises(DataError, match="other shapes or numbers from batch to batch: pass prompts of one length"):
            capture_rows(pipe, MANY, learn(pipe), batch=2)

    def test_latents_are_those_of_the_pipeline(self):
        pipe = Pipeline(guided)
        found = learn(pipe)
        keywords = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(5)}
        own = pipe(MANY, guidance_scale=1.0, **keywords)
        assert torch.equal(capture_rows(pipe, MANY, found, steps=4, seed=5).latents, own)
        for guidance, scale in ((True, 4.0), (2.5, 2.5)):
            keywords["generator"] = torch.Generator().manual_seed(5)
            own = pipe(MANY, guidance_scale=scale, **keywords)
            assert torch.equal(capture_rows(pipe, MANY, found, steps=4, guided=guidance, seed=5).latents, own)

    def test_conditioning_alone_costs_a_step_a_batch(self):
        pipe, steps = Pipeline(plain), []
        found = learn(pipe)
        pipe.call = lambda *given: steps.append(1) or plain(*given)
        capture_rows(pipe, MANY, found, batch=3)
        assert len(steps) == 2

    def test_another_pipeline_is_refused(self):
        found = learn(Pipeline(plain))
        with pytest.raises(DataError, match="in another way than was learnt: replaying"):
            capture_rows(Pipeline(lambda *given: -plain(*given)), MANY, found)
        with pytest.raises(DataError, match="'mask' was not there before: learn it from prompts of different lengths"):
            capture_rows(Pipeline(with_mask), MANY, found)

    @pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}, {"seed": -1}])
    def test_numbers_out_of_range(self, wrong):
        pipe = Pipeline(plain)
        with pytest.raises(DataError, match="at least"):
            capture_rows(pipe, MANY, learn(pipe), **wrong)

    def test_a_number_of_rows(self):
        pipe = DDPMPipeline(tiny_unconditional(), DDPMScheduler())
        found = learn(pipe)
        assert len(capture_rows(pipe, 5, found, batch=2)) == 5
        with pytest.raises(DataError, match="one row at least, got 0"):
            capture_rows(pipe, 0, found)
        with pytest.raises(DataError, match="takes prompts, got 4"):
            capture_rows(Pipeline(plain), 4, learn(Pipeline(plain)))


class TestTwoDenoisers:
    def pipe(self, last=0):
        def call(pipe, latents, t, prompts):
            part = pipe.transformer if t > last else pipe.transformer_2
            return part(latents, timestep=t.expand(len(latents)) / (1 if t > last else 1000)).sample

        pipe = Pipeline(call)
        pipe.transformer_2 = Denoiser()
        return pipe

    def test_each_is_learnt_in_its_part_of_the_schedule(self):
        pipe = self.pipe(400)
        first, second = (learn(pipe, denoiser=name) for name in ("transformer", "transformer_2"))
        assert (first.denoiser, second.denoiser) == ("transformer", "transformer_2")
        assert first.call == UNET_CALL and second.call.times == {"timestep": (0.001, 0.0)}
        assert second.options["num_inference_steps"] > 3
        assert len(capture_rows(pipe, MANY, second)) == 5

    def test_one_that_is_never_run(self):
        with pytest.raises(
            DataError, match="called its transformer_2, a Denoiser, before 0 of its scheduler's 24 steps"
        ):
            learn(self.pipe(), denoiser="transformer_2")
