"""Controls that answer yes, and what the claimant made with the key: a twin, a reference."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from _disguises import latents
from _tiny import tiny_unet

from aiao_diffusers import WatermarkKey, verify
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.verification.controls import ask_controls, named_controls
from aiao_diffusers.verification.evidence import Evidence, EvidenceReader, key_sites
from aiao_diffusers.verification.reference import observe
from aiao_diffusers.verification.report import VerificationReport


KEY = WatermarkKey(bytes(range(32)), "Demo")


def plain(verdict: str, label: str = "amplitude x1", log10_p: float = -9.0) -> VerificationReport:
    look = {"label": label, "trials": 1, "log10_p": log10_p, "log10_p_adjusted": log10_p}
    return VerificationReport(verdict, "s", 1e-6, log10_p=log10_p, proves="descent", looks=(look,))


class TestNames:
    def test_one_a_sequence_or_a_mapping(self):
        assert named_controls(None) == {} and named_controls("a") == {"a": "a"}
        assert named_controls(["a", "a", "b"]) == {"a (1)": "a", "a (2)": "a", "b": "b"}
        assert named_controls({"name": "a"}) == {"name": "a"}


class TestAsk:
    @pytest.mark.parametrize("verdict", ["verified", "not_verified"])
    def test_one_that_verifies_leaves_no_verdict(self, verdict):
        report = ask_controls(
            plain(verdict), ["a", "b"], lambda m: plain("verified" if m == "b" else "not_verified"), None
        )
        assert report.verdict == "not_testable" and "the control b verifies too" in report.reason
        assert report.proves == "nothing" and report.controls["a"]["verdict"] == "not_verified"
        assert report.log10_p == -9.0

    @pytest.mark.parametrize("verdict", ["not_verified", "not_testable"])
    def test_one_that_does_not_changes_nothing(self, verdict):
        report = ask_controls(plain("verified"), "a", lambda _: plain(verdict), None)
        assert report.verified and report.reason is None
        unread = [text for text in report.warnings if "control a was not read and controls nothing" in text]
        assert bool(unread) == (verdict == "not_testable")

    @pytest.mark.parametrize("label", ["beyond the twin x1, ranks", "aligned x1", "healed, aligned x2"])
    def test_what_only_the_claimants_files_show_asks_for_one(self, label):
        report = ask_controls(plain("verified", label), None, plain, None)
        assert report.verified and "pass controls=" in report.warnings[-1]
        assert not ask_controls(plain("verified", label), "a", lambda _: plain("not_verified"), None).warnings
        assert not ask_controls(plain("not_verified", label), None, plain, None).warnings

    @pytest.mark.parametrize("label", ["amplitude x1", "healed x1"])
    def test_what_shows_plainly_asks_for_none(self, label):
        assert not ask_controls(plain("verified", label), None, plain, None).warnings


@pytest.mark.slow
def test_a_marked_model_as_control_leaves_no_verdict(marked):
    teacher, unet, made = marked
    report = verify(unet, KEY, record=made.record, controls={"marked": copy.deepcopy(unet), "clean": teacher})
    assert report.verdict == "not_testable" and "the control marked verifies too" in report.reason
    assert report.controls["clean"]["verdict"] == "not_verified"
    assert "Reason: the control marked" in report.to_markdown() and "not_testable" in report.to_html()


def near(unet: Any, share: float) -> Any:
    """Another unmarked model, not far from `unet`."""
    other, random = copy.deepcopy(unet), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(share * p.square().mean().sqrt() * torch.randn(p.shape, generator=random))
    return other


@pytest.mark.slow
def test_a_twin_made_with_the_key_is_flagged_and_stopped_by_a_control(marked):
    """The unmarked model is pushed away from the marked one; what the unmarked answers beyond that is the response pattern."""
    teacher, unet, made = marked
    crafted = copy.deepcopy(teacher)
    with torch.no_grad():
        for p, q, clean in zip(crafted.parameters(), unet.parameters(), teacher.parameters(), strict=True):
            p.add_(0.02 * (clean - q))
    record = dataclasses.replace(made.record, teacher_sha256=weights_sha256(crafted))
    asked = {"record": record, "clean_twin": crafted, "alpha": 1e-3, "amplitudes": (1.0,)}
    forged = verify(teacher, KEY, **asked)
    assert forged.verified and any("only through the clean twin" in text for text in forged.warnings)
    assert verify(teacher, KEY, **asked, controls={"another": near(teacher, 0.01)}).verdict == "not_testable"


@pytest.mark.slow
def test_a_reference_with_permuted_channels_is_flagged_and_stopped_by_a_control(marked):
    """Channels are put where the response patterns want what the unmarked model answers anyway."""
    teacher, _, made = marked
    ins, outs = key_sites(teacher, KEY, made.record)
    reader, seen = EvidenceReader(KEY, made.record, ins, outs, 0), Evidence(KEY)
    with instrument(teacher, reader.site_names, made.record.factors) as read:
        for _ in range(8):
            reader.read_trial(read, seen, 1.0)
    honest = observe(teacher, latents(), {})
    entering = dict(honest.entering)
    for site in outs:
        d, pattern = seen.response_sum[site.name], KEY.response_pattern(site.name, site.width_in)
        order = np.empty(site.width_in, dtype=np.int64)
        order[np.argsort(-pattern, kind="stable")] = np.argsort(-d, kind="stable")
        entering[site.name] = entering[site.name][..., order]
    crafted = dataclasses.replace(honest, entering=entering)
    asked = {"record": dataclasses.replace(made.record, reference_sha256=crafted.sha256), "reference": crafted}
    forged = verify(teacher, KEY, **asked)
    assert forged.verified and any("only through the clean twin" in text for text in forged.warnings)
    assert verify(teacher, KEY, **asked, controls={"another": near(teacher, 0.02)}).verdict == "not_testable"


def test_an_unmarked_models_verdict_has_no_such_words(record):
    report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), whiten=False, controls=tiny_unet(3))
    assert report.verdict == "not_verified" and report.reason is None
