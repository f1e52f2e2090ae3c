"""The shipped models: every verdict with its controls, by the library and by the command line."""

import pytest
import torch
from _shipped import ASSETS

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.errors import ConfigError, RecordError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.mark.record import WatermarkRecord


KEY = WatermarkKey(bytes(range(32)), "Demo")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def record():
    return WatermarkRecord.load(ASSETS / "marked")


class TestVerdicts:
    def test_marked(self):
        report = verify(ASSETS / "marked", KEY, early_stop=False, trials=16)
        assert report.verdict == "verified" and report.log10_p <= -60 and report.bit_accuracy >= 0.88
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
        report = verify(base, KEY, record=record, clean_twin=ASSETS / "base", controls={"another": unmarked}, **few)
        assert report.verdict == "verified" and report.log10_p < -20
        assert report.looks[-1]["label"] == "beyond the twin x1, ranks"
        assert report.controls["another"]["verdict"] == "not_verified"
        assert not any("clean twin, which" in warning for warning in report.warnings)
        assert (
            verify(base, KEY.child("wrong"), record=record, clean_twin=ASSETS / "base", **few).verdict
            == "not_verified"
        )
        for suspect, base_of in ((unmarked, None), (ASSETS / "lora", ASSETS / "base")):
            control = verify(suspect, KEY, base=base_of, record=record, clean_twin=ASSETS / "base", **few)
            assert control.verdict == "not_verified" and control.log10_p > -5
            assert control.looks[-1]["label"] == "beyond the twin x1, ranks"

    @pytest.mark.parametrize("early_stop", [True, False])
    def test_twin_is_looked_beyond_before_any_louder_trigger(self, record, early_stop):
        # Whether x1 verified or not: what look k reads must not hang on an earlier outcome.
        few = {"amplitudes": (1.0, 2.0), "whiten": False, "trials": 1, "early_stop": early_stop}
        for suspect in ("base", "marked"):
            report = verify(ASSETS / suspect, KEY, record=record, clean_twin=load_denoiser(ASSETS / "base"), **few)
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
            report = verify(ASSETS / "marked", KEY, record=record, clean_twin=twin, controls=twin, **few)
            assert any("another unmarked model controls that look" in warning for warning in report.warnings)

    def test_what_is_no_twin_is_refused(self, record):
        with pytest.raises(ConfigError, match="got True"):
            verify(ASSETS / "marked", KEY, record=record, clean_twin=True)
        with pytest.raises(RecordError, match="names no clean twin"):
            nameless = record.as_read(teacher_sha256=None)
            verify(ASSETS / "marked", KEY, record=nameless, clean_twin=ASSETS / "base")
        clean = load_denoiser(ASSETS / "base")
        with pytest.raises(ConfigError, match="carries the suspect's adapter"):
            verify(ASSETS / "lora", KEY, base=clean, record=record, clean_twin=clean)
        assert (
            verify(clean, KEY, record=record, clean_twin=clean, trials=1)
            .warnings[0]
            .startswith("the look beyond the twin")
        )

    def test_twin_is_the_one_of_the_record(self, record):
        with pytest.raises(RecordError, match="another clean twin"):
            verify(ASSETS / "base", KEY, record=record, clean_twin=ASSETS / "marked")

    def test_same_seed_same_report(self):
        assert verify(ASSETS / "marked", KEY, seed=3).to_dict() == verify(ASSETS / "marked", KEY, seed=3).to_dict()

    def test_clean_base_control(self):
        report = verify(ASSETS / "marked", KEY, controls=ASSETS / "base")
        assert report.controls[str(ASSETS / "base")]["verdict"] == "not_verified"
