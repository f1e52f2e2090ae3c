"""The shipped models: every verdict with its controls, by the library and by the command line."""

import copy
import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from _shipped import ASSETS
from _tiny import tiny_unconditional
from diffusers import AutoPipelineForText2Image, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline

from aiao_diffusers import EmbedConfig, LatentData, WatermarkedStableDiffusionPipeline, WatermarkKey, embed, verify
from aiao_diffusers.bench.audits.rank_scores import read
from aiao_diffusers.cli.demo import _cells
from aiao_diffusers.errors import AlreadyMarkedError, ConfigError, KeyMismatchError, RecordError, SuspectError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.verification.suspect import open_suspect


KEY = WatermarkKey(bytes(range(32)), "Demo")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


class TestVerdicts:
    def test_marked(self):
        report = verify(ASSETS / "marked", KEY, early_stop=False, trials=16)
        assert report.verdict == "verified" and report.log10_p <= -30 and report.bit_accuracy >= 0.98
        assert report.proves == "descent" and report.trials == 16
        assert report.hashes["suspect"] == report.hashes["marked"]

    def test_lora_on_marked(self):
        report = verify(ASSETS / "lora", KEY, base=ASSETS / "marked", early_stop=False)
        assert report.verdict == "verified" and report.log10_p <= -30
        assert report.proves == "carries" and report.adapter["modules"] > 0

    def test_finetuned(self, record):
        report = verify(ASSETS / "finetuned", KEY, record=record, early_stop=False)
        assert report.verdict == "verified" and report.log10_p <= -30

    def test_base_is_not(self, record):
        report = verify(ASSETS / "base", KEY, record=record)
        assert report.verdict == "not_verified" and report.log10_p > -5 and report.proves == "nothing"

    def test_lora_on_base_is_not(self, record):
        report = verify(ASSETS / "lora", KEY, base=ASSETS / "base", record=record)
        assert report.verdict == "not_verified" and report.log10_p > -5

    @pytest.mark.parametrize("label", ["a", "b", "c", "d"])
    def test_wrong_key_is_not(self, label):
        report = verify(ASSETS / "marked", KEY.child(label))
        assert report.verdict == "not_verified" and report.log10_p > -5
        assert any("another key" in text for text in report.warnings)

    def test_twin_brings_a_merge_back(self, record):
        few = {"amplitudes": (1.0,), "whiten": False}  # of the other looks other tests speak
        base, marked = (load_denoiser(ASSETS / name) for name in ("base", "marked"))
        theirs = marked.state_dict()
        merged = {name: v.lerp(theirs[name], 0.1) for name, v in base.state_dict().items()}
        base.load_state_dict(merged)
        assert verify(base, KEY, record=record, **few).verdict == "not_verified"
        unmarked = load_denoiser(ASSETS / "base")
        torch.manual_seed(0)
        with torch.no_grad():
            for p in unmarked.parameters():
                p.add_(0.02 * p.square().mean().sqrt() * torch.randn_like(p))
        # Beyond itself the twin answers nothing, so models that differ from it are the controls that can fail.
        report = verify(base, KEY, record=record, twin=ASSETS / "base", clean_base=unmarked, **few)
        assert report.verdict == "verified" and report.log10_p < -20
        assert report.looks[-1]["label"] == "beyond the twin x1, ranks"
        assert report.controls["clean_base"]["verdict"] == "not_verified"
        assert not any("clean_base" in warning for warning in report.warnings)
        assert verify(base, KEY.child("wrong"), record=record, twin=ASSETS / "base", **few).verdict == "not_verified"
        for suspect, base_of in ((unmarked, None), (ASSETS / "lora", ASSETS / "base")):
            control = verify(suspect, KEY, base=base_of, record=record, twin=ASSETS / "base", **few)
            assert control.verdict == "not_verified" and control.log10_p > -5
            assert control.looks[-1]["label"] == "beyond the twin x1, ranks"

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_twin_is_looked_beyond_before_any_louder_trigger(self, record, early_stop):
        # Whether x1 verified or not: what look k reads must not hang on an earlier outcome.
        few = {"amplitudes": (1.0, 2.0), "whiten": False, "trials": 1, "early_stop": early_stop}
        for suspect in ("base", "marked"):
            report = verify(ASSETS / suspect, KEY, record=record, twin=load_denoiser(ASSETS / "base"), **few)
            labels = [look["label"] for look in report.looks]
            order = [
                "amplitude x1",
                "amplitude x1, ranks",
                "beyond the twin x1, ranks",
                "amplitude x2",
                "amplitude x2, ranks",
            ]
            assert labels == order[: len(labels)] and (suspect == "marked" or labels == order)
            assert (suspect == "marked") == report.verified and (early_stop or len(labels) >= 3)

    def test_a_control_that_is_the_twin_itself_is_said_to_be_none(self, record):
        few = {"amplitudes": (1.0,), "whiten": False, "trials": 1}
        for twin in (ASSETS / "base", load_denoiser(ASSETS / "base")):
            report = verify(ASSETS / "marked", KEY, record=record, twin=twin, clean_base=twin, **few)
            assert any("another unmarked model controls that look" in warning for warning in report.warnings)

    def test_what_is_no_twin_is_refused(self, record):
        with pytest.raises(ConfigError, match="got True"):
            verify(ASSETS / "marked", KEY, record=record, twin=True)
        with pytest.raises(RecordError, match="names no clean twin"):
            nameless = dataclasses.replace(record, teacher_sha256=None)
            verify(ASSETS / "marked", KEY, record=nameless, twin=ASSETS / "base")
        clean = load_denoiser(ASSETS / "base")
        with pytest.raises(ConfigError, match="carries the suspect's adapter"):
            verify(ASSETS / "lora", KEY, base=clean, record=record, twin=clean)
        assert (
            verify(clean, KEY, record=record, twin=clean, trials=1).warnings[0].startswith("the look beyond the twin")
        )

    def test_twin_is_the_one_of_the_record(self, record):
        with pytest.raises(RecordError, match="another clean twin"):
            verify(ASSETS / "base", KEY, record=record, twin=ASSETS / "marked")

    def test_same_seed_same_report(self):
        assert verify(ASSETS / "marked", KEY, seed=3).to_dict() == verify(ASSETS / "marked", KEY, seed=3).to_dict()

    def test_clean_base_control(self):
        report = verify(ASSETS / "marked", KEY, clean_base=ASSETS / "base")
        assert report.controls["clean_base"]["verdict"] == "not_verified"


def test_demo_shows_a_verdict_without_numbers():
    row = {"name": "x", "expected": "verified", "verdict": "not_testable", "log10_p": None, "bit_accuracy": None}
    assert _cells(row) == ["x", "verified", "not_testable", "", ""]
    assert _cells({**row, "log10_p": -9.0, "bit_accuracy": 1.0})[3:] == ["-9.0", "1.000"]


class TestWhitened:
    def test_reads_deeper_what_merging_left_and_nothing_in_controls(self):
        record = WatermarkRecord.load(ASSETS / "marked")
        base, marked = (load_denoiser(ASSETS / name, dtype=torch.float32) for name in ("base", "marked"))
        merged = copy.deepcopy(marked)
        with torch.no_grad():
            for p, clean in zip(merged.parameters(), base.parameters(), strict=True):
                p.lerp_(clean, 0.7)

        def ranks(suspect, key, seed):
            return [found.rank_log10_p() for found in read(suspect, key, record, trials=8, seed=seed)]

        plain, whitened = zip(*(ranks(merged, KEY, seed) for seed in range(3)), strict=True)
        assert max(whitened) < -8 and sum(whitened) < sum(plain)
        with open_suspect(ASSETS / "lora", ASSETS / "base") as same_lora:
            controls = [(base, KEY), (merged, KEY.child("wrong")), (same_lora.denoiser, KEY)]
            assert all(ranks(suspect, key, seed)[1] > -5 for suspect, key in controls for seed in range(3))


class TestBadInput:
    def test_misuse_raises(self, tmp_path):
        with pytest.raises(RecordError, match="no watermark record"):
            verify(ASSETS / "base", KEY)
        with pytest.raises(KeyMismatchError):
            verify(ASSETS / "marked", KEY.child("x"), record=ASSETS / "marked")
        with pytest.raises(ConfigError, match="alpha"):
            verify(ASSETS / "marked", KEY, alpha=2)
        with pytest.raises(ConfigError, match="trials"):
            verify(ASSETS / "marked", KEY, trials=0)
        with pytest.raises(SuspectError, match="no file or folder"):
            verify(tmp_path / "none", KEY)
        with pytest.raises(SuspectError, match="base"):
            verify(ASSETS / "lora", KEY)

    def test_broken_weights_are_not_testable(self):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        next(pipe.unet.parameters()).data.flatten()[0] = float("nan")
        report = pipe.verify(KEY)
        assert report.verdict == "not_testable" and "NaN" in report.reason

    def test_marked_twice_needs_the_flag(self):
        pipe = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        with pytest.raises(AlreadyMarkedError):
            pipe.embed(KEY)


class TestPipeline:
    def test_stock_classes_make_the_same_images(self, tmp_path):
        ours = WatermarkedStableDiffusionPipeline.from_pretrained(ASSETS / "marked")
        ours.save_pretrained(tmp_path / "saved")
        assert (
            json.loads((tmp_path / "saved/model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"
        )

        def latents(pipe):
            pipe.set_progress_bar_config(disable=True)
            options = {
                "num_inference_steps": 3,
                "output_type": "latent",
                "generator": torch.Generator().manual_seed(0),
            }
            return pipe("cat face", **options).images

        wanted = latents(StableDiffusionPipeline.from_pretrained(ASSETS / "marked"))
        assert torch.equal(latents(ours), wanted)
        for stock in (StableDiffusionPipeline, DiffusionPipeline, AutoPipelineForText2Image):
            pipe = stock.from_pretrained(tmp_path / "saved")
            assert type(pipe) is StableDiffusionPipeline and torch.equal(latents(pipe), wanted)
        assert verify(tmp_path / "saved", KEY).verified


class TestEmbed:
    def small(self):
        unet = tiny_unconditional(
            block_out_channels=(32, 32),
            layers_per_block=2,
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
        )
        return unet, LatentData(torch.randn(16, 3, 8, 8), {}), DDPMScheduler()

    def test_unconditional_denoiser_learns_the_mark(self):
        unet, data, scheduler = self.small()
        fields = {"steps": 60, "lr": 2e-3, "batch_size": 4, "in_sites": 2, "out_sites": 3, "bank_size": 4}
        config = EmbedConfig(**fields, response=1.0, eps=1.0, dec=2.0, corr=2.0, anchor=0.0, max_price=None)
        record = embed(unet, KEY, data, config, scheduler=scheduler).record
        assert verify(unet, KEY, record=record).log10_p < -6
        assert verify(unet, KEY.child("wrong"), record=record).log10_p > -5
        clean = self.small()[0]
        assert verify(clean, KEY, record=record).log10_p > -5

    def test_resumes_to_the_same_weights(self, tmp_path):
        fields = {"steps": 6, "batch_size": 2, "in_sites": 1, "out_sites": 1, "checkpoint_every": 3, "bank_size": 2}
        whole, data, scheduler = self.small()
        embed(whole, KEY, data, EmbedConfig(**fields), scheduler=scheduler)
        cut = self.small()[0]
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


class TestCommandLine:
    def aiao(self, *words):
        program = "from aiao_diffusers.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=300
        )

    def test_keygen_and_exit_codes(self, tmp_path):
        key = tmp_path / "a.key"
        made = self.aiao("keygen", "--owner", "Acme", "-o", key, "--json")
        assert made.returncode == 0 and json.loads(made.stdout)["commitment"] == WatermarkKey.load(key).commitment
        again = self.aiao("keygen", "--owner", "Acme", "-o", key)
        assert again.returncode == 1 and "KeyFileError" in again.stderr
        wrong = self.aiao("verify", ASSETS / "marked", "--key", key, "--json")
        assert wrong.returncode == 3 and json.loads(wrong.stdout)["verdict"] == "not_verified"
        assert self.aiao("verify").returncode == 2

    def test_verify_json(self):
        done = self.aiao("verify", ASSETS / "marked", "--key", ASSETS / "demo.key", "--json")
        fields = json.loads(done.stdout)
        assert done.returncode == 0 and fields["verdict"] == "verified"
        contract = "verdict log10_p alpha bit_accuracy verification_rate verification_rate_ci trials denoiser_evals"
        assert set(contract.split()) | {"sites", "suspect", "base", "proves", "controls", "warnings"} <= set(fields)

    def test_demo(self, tmp_path):
        done = self.aiao("demo", "--assets", ASSETS, "-o", tmp_path / "report", "--json")
        rows = json.loads(done.stdout)
        assert done.returncode == 0, done.stderr
        assert len(rows) == 6 and all(row["verdict"] == row["expected"] for row in rows)
        assert (tmp_path / "report" / "report.md").exists()
        page = (tmp_path / "report" / "report.html").read_text()
        assert page.count("<details>") == 6 and "Who carries the mark?" in page

    def test_embeds_into_pipelines_of_other_classes(self, tmp_path):
        key, marked = tmp_path / "a.key", tmp_path / "marked"
        WatermarkKey.generate("Acme").save(key)
        data = ("--data", ASSETS / "latents" / "noto.safetensors")
        fields = ("--steps", 1, "--in-sites", 2, "--out-sites", 4)
        pairs = (*fields, "--pairs", "--json")
        done = self.aiao("embed", ASSETS / "unconditional", "--key", key, "-o", marked, *data, *pairs)
        assert done.returncode == 0, done.stderr
        assert json.loads((marked / "aiao" / "watermark.json").read_text())["pairs"] is True
        assert json.loads((marked / "model_index.json").read_text())["_class_name"] == "LDMPipeline"
        assert WatermarkRecord.load(marked).commitment == WatermarkKey.load(key).commitment
        again = self.aiao("embed", marked, "--key", key, "-o", tmp_path / "twice", *data, *fields)
        assert again.returncode == 1 and "AlreadyMarkedError" in again.stderr
        with pytest.raises(ConfigError, match="is a LDMPipeline"):
            WatermarkedStableDiffusionPipeline.from_pretrained(marked)
        nowhere = self.aiao("embed", tmp_path / "nothing", "--key", key, "-o", tmp_path / "out")
        assert nowhere.returncode == 1 and "SuspectError" in nowhere.stderr
