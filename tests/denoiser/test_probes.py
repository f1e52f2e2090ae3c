"""What a pipeline gives its denoiser is kept, and the pipeline is left as it was."""

import hashlib
import json

import pytest
import torch
from _shipped import ASSETS
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, EDMEulerScheduler, LDMPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aiao_diffusers import LatentData, Probes, capture_probes
from aiao_diffusers.denoiser.call import evaluate
from aiao_diffusers.denoiser.prompts import encode_prompts
from aiao_diffusers.denoiser.schedule import noise_schedule
from aiao_diffusers.errors import DataError
from tests.pipelines import FAMILIES


FEW = {"steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return DiffusionPipeline.from_pretrained(ASSETS / "base")


@pytest.mark.slow
class TestCapture:
    def test_conditioning_and_latents_of_the_pipeline(self, pipe):
        prompts = ["a cat", "two dogs", "rain"]
        made = capture_probes(pipe, prompts, 5, **FEW)
        given = encode_prompts(pipe, prompts)["encoder_hidden_states"]
        torch.testing.assert_close(made.data.conditioning["encoder_hidden_states"], given)
        own = pipe(
            prompts,
            generator=torch.Generator().manual_seed(5),
            **{"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"},
        ).images
        assert torch.equal(made.data.latents, own) and made.scheduler["beta_end"] == 0.012
        assert (made.pipeline, made.seed) == ("StableDiffusionPipeline", 5)

    def test_the_seed_and_the_prompts_decide(self, pipe):
        asked = [(["a cat"], 0), (["a cat"], 0), (["a cat"], 1), (["a dog"], 0)]
        first, again, other_seed, other = (capture_probes(pipe, *each, **FEW) for each in asked)
        assert first.sha256 == again.sha256 and len({p.sha256 for p in (first, other_seed, other)}) == 3
        assert first.prompts_sha256 == other_seed.prompts_sha256 != other.prompts_sha256

    def test_prompts_of_a_file(self, pipe, tmp_path):
        (tmp_path / "p.txt").write_text("a cat\n\ntwo dogs\n")
        (tmp_path / "p.json").write_text(json.dumps(["a cat", "two dogs"]))
        text, listed = (capture_probes(pipe, tmp_path / name, **FEW) for name in ("p.txt", "p.json"))
        assert text.sha256 == listed.sha256 and len(text.data) == 2

    def test_more_than_a_batch(self, pipe):
        assert len(capture_probes(pipe, ["a cat"] * 17, **FEW).data) == 17

    def test_the_pipeline_is_left_as_it_was(self, pipe, monkeypatch):
        bars = dict(getattr(pipe, "_progress_bar_config", {}))
        capture_probes(pipe, ["a cat"], **FEW)
        monkeypatch.setattr(pipe.unet.conv_in, "forward", lambda *_: 1 / 0)
        with pytest.raises(DataError, match="does not run"):
            capture_probes(pipe, ["a cat"], **FEW)
        assert "step" not in pipe.scheduler.__dict__ and not pipe.unet._forward_pre_hooks
        assert pipe._progress_bar_config == bars


def test_a_pipeline_without_prompts():
    made = capture_probes(DDPMPipeline(tiny_unconditional(), DDPMScheduler()), count=3, name="mine", **FEW)
    assert len(made.data) == 3 and not made.data.conditioning and made.prompts_sha256 is None
    assert made.describe()["pipeline"] == "mine" and torch.isfinite(made.data.latents).all()


@pytest.mark.slow
def test_a_pipeline_that_always_doubles_gives_the_part_that_counts(pipe, monkeypatch):
    plain = capture_probes(pipe, ["a cat"], **FEW).data.conditioning["encoder_hidden_states"]
    monkeypatch.setattr(type(pipe), "do_classifier_free_guidance", property(lambda self: True))
    found = capture_probes(pipe, ["a cat"], **FEW).data.conditioning["encoder_hidden_states"]
    torch.testing.assert_close(found, plain)


class TestFlows:
    OPTIONS = {"height": 64, "width": 64, "max_sequence_length": 16}

    @pytest.mark.parametrize("name", ["flux_1_dev", "stable_diffusion_3"])
    def test_a_transformer_gives_probes_that_keep_the_call(self, name, tmp_path):
        pipe = FAMILIES[name].build()
        made = capture_probes(pipe, ["a cat", "two dogs"], 5, **FEW, options=self.OPTIONS)
        path = made.save(tmp_path / "p.safetensors")
        again = Probes.load(path)
        assert made.sha256 == again.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (
            again.data.call.to_json() == made.data.call.to_json()
            and again.data.call.shared.keys() == made.data.call.shared.keys()
        )
        level = noise_schedule(again.scheduler).level(torch.tensor([300, 900]))
        with torch.no_grad():
            one, other = (evaluate(pipe.transformer, p.data.latents, level, p.data.keywords()) for p in (made, again))
        torch.testing.assert_close(one, other)
        assert one.shape == made.data.latents.shape

    def test_another_call_in_the_file_is_refused(self, tmp_path):
        made = capture_probes(FAMILIES["flux_1_dev"].build(), ["a cat"], 5, **FEW, options=self.OPTIONS)
        path = made.save(tmp_path / "p.safetensors")
        told = json.loads(safe_open(path, "pt").metadata()["aiao"])
        for call, words in ((3, "no file of probes"), ("{", "cannot be read"), ('{"sign": 2}', "no valid sign")):
            save_file(load_file(path), tmp_path / "q.safetensors", {"aiao": json.dumps({**told, "call": call})})
            with pytest.raises(DataError, match=words):
                Probes.load(tmp_path / "q.safetensors")


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize("prompts", [[], [" "], [3], None])
    def test_no_prompts(self, pipe, prompts):
        with pytest.raises(DataError, match="prompts"):
            capture_probes(pipe, prompts)

    def test_prompts_that_are_not_taken(self):
        with pytest.raises(DataError, match="leave prompts="):
            capture_probes(DDPMPipeline(tiny_unconditional(), DDPMScheduler()), ["a cat"])

    def test_no_pipeline(self):
        for other in (tiny_unconditional(), object(), None):
            with pytest.raises(DataError, match="from a pipeline"):
                capture_probes(other)

    @pytest.mark.parametrize("fields", [{"seed": -1}, {"count": 0}, {"steps": 0}])
    def test_numbers_out_of_range(self, fields):
        with pytest.raises(DataError, match=next(iter(fields))):
            capture_probes(DDPMPipeline(tiny_unconditional(), DDPMScheduler()), **fields)

    def test_a_schedule_of_another_kind_before_anything_runs(self, monkeypatch):
        pipe = LDMPipeline(None, tiny_unconditional(), EDMEulerScheduler())
        monkeypatch.setattr(LDMPipeline, "__call__", lambda self: 1 / 0)
        with pytest.raises(DataError, match="'EDMEulerScheduler', is of another kind: .* betas or of flow matching"):
            capture_probes(pipe)


class TestFile:
    def made(self):
        data = LatentData(torch.randn(2, 3, 8, 8), {"encoder_hidden_states": torch.randn(2, 5, 6)})
        return Probes(data, dict(DDPMScheduler().config), "mine", 3, "00")

    def test_round_trip(self, tmp_path):
        made = self.made()
        again = Probes.load(made.save(tmp_path / "p.safetensors"))
        assert torch.equal(again.data.latents, made.data.latents) and again.describe() == made.describe()
        assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
        assert json.loads(json.dumps(again.describe()))["inputs"] == 2

    @pytest.mark.parametrize(
        "told", [None, {}, {"aiao": "{"}, {"aiao": "[]"}, {"aiao": '{"format": "aiao-probes-1"}'}]
    )
    def test_not_a_file_of_probes(self, tmp_path, told):
        path = self.made().save(tmp_path / "p.safetensors")
        save_file(load_file(path), path, told)
        with pytest.raises(DataError, match="no file of probes"):
            Probes.load(path)

    def test_cut_or_missing(self, tmp_path):
        path = self.made().save(tmp_path / "p.safetensors")
        path.write_bytes(path.read_bytes()[:-9])
        for each in (path, tmp_path / "none"):
            with pytest.raises(DataError, match="cannot be read"):
                Probes.load(each)
