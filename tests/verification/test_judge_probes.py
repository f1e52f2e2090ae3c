"""Canonical reading: what the claimant wrote does not matter, and an honest mark reads all the same."""

import dataclasses
import json

import pytest
import torch
from _forgeries import forge_record
from _kind import FULL
from _shipped import ASSETS, DEMO
from _tiny import tiny_unet
from diffusers import DDPMScheduler, DiffusionPipeline

from aiao_diffusers import LatentData, Probes, WatermarkRecord, capture_probes, verify
from aiao_diffusers.errors import ConfigError, DataError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.verification.judge_probes import canonical_record, open_probes


FEW = {"trials": 2, "amplitudes": (1.0,), "whiten": False}


def probes_for(record, rows=4, seed=9, **conditioning):
    random = torch.Generator().manual_seed(seed)
    like = {"latents": record.bank.latents, **record.bank.conditioning}
    drawn = {name: torch.randn(rows, *value.shape[1:], generator=random) for name, value in like.items()}
    data = LatentData(drawn.pop("latents"), drawn | conditioning)
    return Probes(data, dict(DDPMScheduler().config), "mine", seed, None)


@pytest.fixture
def probes(record):
    return probes_for(record)


def inputs_of(suspect, record, **options):
    """What the first layer of `suspect` is fed in a reading, and the report."""
    fed = []
    handle = suspect.conv_in.register_forward_pre_hook(lambda module, args: fed.append(args[0].clone()))
    report = verify(suspect, DEMO, record=record, **FEW, **options)
    handle.remove()
    return fed, report


class TestCanonical:
    @pytest.mark.slow
    def test_whatever_the_claimant_wrote_the_reading_is_the_same(self, record, probes):
        suspect = tiny_unet()
        silent = tuple(0.0 if n == 1 else 1.0 for n in range(record.sites))
        record = dataclasses.replace(record, in_sites=1, loudness=silent)
        fed, plain = inputs_of(suspect, record, probes=probes)
        loud = tuple(7.0 * gain for gain in silent)
        changes = {
            "kappa": {"kappa": 50.0},
            "loudness": {"loudness": loud},
            "bank": {"bank": LatentData(record.bank.latents * 9, record.bank.conditioning)},
            "bank of no such denoiser": {"bank": LatentData(record.bank.latents, {"surprise": torch.zeros(3)})},
            "schedule": {"scheduler": {"trained_betas": [1e-9] * 1000}},
            "layout": {"layout": record.layout[::-1], "loudness": silent[::-1]},
            "hashes": {"teacher_sha256": "00", "reference_sha256": "00"},
        }
        for name, fields in changes.items():
            again, report = inputs_of(suspect, dataclasses.replace(record, **fields), probes=probes)
            assert all(torch.equal(a, b) for a, b in zip(fed, again, strict=True)), name
            assert (report.looks, report.sites, report.subpaths) == (plain.looks, plain.sites, plain.subpaths), name

    def test_says_what_it_was_read_with_and_what_p_supposes(self, record, probes):
        report = verify(tiny_unet(), DEMO, record=record, probes=probes, **FEW)
        told = report.to_dict()["probes"]
        assert told["sha256"] == probes.sha256 and told["inputs"] == 4 and "before any ancestor" in told["assumes"]
        head = report.to_markdown().split("- log10 p")[0]
        assert (
            "judge's own probes" in head and "p supposes that the key was fixed" in head and probes.sha256[:16] in head
        )
        assert report.hashes["record"] == record.sha256
        assert verify(tiny_unet(), DEMO, record=record, **FEW).to_dict()["probes"] is None

    def test_counts_the_traced_forward(self, record, probes):
        plain = verify(tiny_unet(), DEMO, record=record, **FEW)
        assert (
            verify(tiny_unet(), DEMO, record=record, probes=probes, **FEW).denoiser_evals == plain.denoiser_evals + 1
        )

    def test_keeps_the_silent_sites_and_pairs(self, record, probes):
        gains = (0.0, *(2.0,) * (record.sites - 1))
        read, warnings = canonical_record(dataclasses.replace(record, loudness=gains, pairs=True), probes, tiny_unet())
        assert read.silent == {record.layout[0].name} and set(read.factors.values()) == {0.0, 1.0}
        assert read.pairs and read.kappa == 1.0 and read.layout == record.layout and not warnings

    def test_sites_other_than_the_records_are_said(self, record, probes):
        other = dataclasses.replace(record, layout=record.layout[::-1])
        assert "not those of the record's layout" in canonical_record(other, probes, tiny_unet())[1][0]

    def test_leaves_out_conditions_that_the_denoiser_does_not_take(self, record):
        more = probes_for(record, surprise=torch.zeros(4, 3))
        assert verify(tiny_unet(), DEMO, record=record, probes=more, **FEW).verdict == "not_verified"

    @pytest.mark.slow
    def test_controls_and_other_candidates_are_read_with_them_too(self, record, probes, tmp_path):
        tiny_unet().save_pretrained(tmp_path)
        tiny_unet(1).save_pretrained(tmp_path, variant="fp16")
        asked = {"record": record, "probes": probes, "all_candidates": True, "controls": tiny_unet(3), **FEW}
        report = verify(tmp_path, DEMO, **asked)
        (beside,) = report.also_present
        alone = verify(tiny_unet(1), DEMO, record=record, probes=probes, alpha=5e-7, **FEW)
        assert beside["log10_p"] == alone.log10_p
        control = verify(tiny_unet(3), DEMO, record=record, probes=probes, **FEW)
        assert report.controls["UNet2DConditionModel"]["log10_p"] == control.log10_p


class TestRefusals:
    @pytest.mark.parametrize("offer", ["clean_twin", "reference"])
    def test_nothing_of_the_claimants_beside(self, record, probes, offer):
        with pytest.raises(ConfigError, match=f"{offer}=.*leave one of them out"):
            verify(tiny_unet(), DEMO, record=record, probes=probes, **{offer: tiny_unet(3)})

    def test_of_another_kind_or_no_file(self, record, tmp_path):
        with pytest.raises(ConfigError, match="got int"):
            verify(tiny_unet(), DEMO, record=record, probes=3)
        with pytest.raises(DataError):
            verify(tiny_unet(), DEMO, record=record, probes=tmp_path / "none")
        assert open_probes(None, 1, 1) is None

    def test_that_the_suspect_does_not_take(self, record):
        wide = probes_for(record, encoder_hidden_states=torch.zeros(4, 5, 99))
        report = verify(tiny_unet(), DEMO, record=record, probes=wide)
        assert report.verdict == "not_testable" and "judge's probes" in report.reason and report.probes["inputs"] == 4

    def test_a_suspect_with_fewer_sites_than_the_key_selects(self, record, probes):
        asked = dataclasses.replace(record, in_sites=99)
        report = verify(tiny_unet(), DEMO, record=asked, probes=probes)
        assert report.verdict == "not_testable" and "too few" in report.reason

    def test_a_schedule_that_cannot_be_built(self, record, probes):
        broken = dataclasses.replace(probes, scheduler={"beta_schedule": "unheard of"})
        with pytest.raises(ConfigError, match="noise schedule of the probes"):
            verify(tiny_unet(), DEMO, record=record, probes=broken)


@pytest.mark.slow
def test_a_mark_with_gains_reads_without_them(marked):
    _, unet, made = marked
    assert max(made.record.loudness) > 2
    assert verify(unet, DEMO, record=made.record, probes=probes_for(made.record)).log10_p < -10
    wrong = verify(unet, DEMO.child("wrong"), record=made.record, probes=probes_for(made.record), **FEW)
    assert wrong.verdict == "not_verified"


if FULL:  # minutes

    @pytest.mark.slow
    def test_a_bank_made_by_gradient_ascent_on_the_shipped_base_reads_by_itself_alone():
        """The model is unmarked, and its weights stay as they are."""
        base, record = load_denoiser(ASSETS / "base"), WatermarkRecord.load(ASSETS / "marked")
        forged = forge_record(base, record, DEMO, steps=100)
        claimed = verify(base, DEMO, record=forged)
        assert claimed.verified and claimed.log10_p < -8
        probes = capture_probes(DiffusionPipeline.from_pretrained(ASSETS / "base"), ["cat", "a house"], 1)
        seen = verify(base, DEMO, record=forged, probes=probes)
        print(f"claimant's bank {claimed.log10_p:.1f}, judge's probes {seen.log10_p:.1f}")
        assert seen.verdict == "not_verified" and min(look["log10_p"] for look in seen.looks) > -4


PROMPTS = ["a red apple", "smiling face", "cat", "dog with hat", "rain cloud", "green car", "a house", "heart"]


@pytest.mark.slow
def test_the_shipped_mark_by_inputs_of_many_kinds():
    """Prints what `docs/verification.md` shows: `pytest -s -k many_kinds`."""
    record, models = WatermarkRecord.load(ASSETS / "marked"), ("marked", "finetuned", "base")
    suspects = {name: load_denoiser(ASSETS / name) for name in models}
    own = capture_probes(DiffusionPipeline.from_pretrained(ASSETS / "base"), PROMPTS, 1)
    text, random = own.data.conditioning["encoder_hidden_states"], torch.Generator().manual_seed(0)
    noise = torch.randn(own.data.latents.shape, generator=random)
    captions = text.std() * torch.randn(text.shape, generator=random)
    kinds = {
        "own prompts": own.data,
        "Twemoji rows": LatentData.load(ASSETS / "latents" / "twemoji.safetensors").take(torch.arange(64)),
        "Gaussian latents and captions": LatentData(noise, {"encoder_hidden_states": captions}),
        "zeros": LatentData(0 * noise, {"encoder_hidden_states": 0 * text}),
    }
    for kind, data in kinds.items():
        probes = dataclasses.replace(own, data=data)
        whole = {"record": record, "probes": probes, "amplitudes": (1.0,), "whiten": False}
        seen = {name: verify(suspect, DEMO, **whole, early_stop=False).log10_p for name, suspect in suspects.items()}
        keys = [DEMO.child(f"wrong/{number}") for number in range(6)]
        wrong = [look["log10_p"] for key in keys for look in verify(suspects["marked"], key, **whole).looks]
        print(kind, json.dumps({name: round(p, 1) for name, p in seen.items()} | {"wrong keys": round(min(wrong), 1)}))
        assert seen["marked"] < -40 and seen["finetuned"] < -40 and seen["base"] > -3 and min(wrong) > -5
