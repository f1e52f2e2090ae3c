"""Suspects that fit the record badly: read on what is there, or refused with the reason; never a silent verdict."""

import dataclasses

import pytest
import torch
from _tiny import tiny_unet
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord, embed, verify
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.errors import ConfigError, NotTestableError, RecordError
from aiao_diffusers.mark.record import DOCUMENT, FOLDER
from aiao_diffusers.mark.selection import choose
from aiao_diffusers.stats.hits import combined_log10_p
from aiao_diffusers.verification import plan_run
from aiao_diffusers.verification.evidence import key_sites
from aiao_diffusers.verification.healing import heal_copy


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def record():
    generator = torch.Generator().manual_seed(0)
    bank = LatentData(
        torch.randn(3, 4, 8, 8, generator=generator),
        {"encoder_hidden_states": torch.randn(3, 5, 12, generator=generator)},
    )
    layout = tuple(trace_on(tiny_unet(), bank))
    fields = {"kappa": 1.0, "response": 1.0, "scheduler": {"num_train_timesteps": 1000}, "bank": bank}
    return WatermarkRecord("Demo", KEY.commitment, "UNet2DConditionModel", len(layout), 2, 3, **fields, layout=layout)


class Renamed(nn.Module):
    """Computes as the attention inside, but the site's name is gone."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def without(unet, names):
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(unet.get_submodule(parent), leaf, Renamed(unet.get_submodule(name)))
    return unet


def chosen(record):
    return choose(list(record.layout), KEY, record.in_sites, record.out_sites)


class TestFewerSites:
    def test_all_there(self, record):
        assert key_sites(tiny_unet(), KEY, record) == chosen(record)
        report = verify(tiny_unet(), KEY, record=record, trials=1)
        assert report.verdict == "not_verified" and len(report.sites) == 3
        assert not any("in-sites" in text for text in report.warnings)

    def test_reads_on_those_that_match_and_says_how_many(self, record):
        ins, outs = chosen(record)
        suspect = without(tiny_unet(), [ins[0].name, outs[1].name])
        assert key_sites(suspect, KEY, record) == (ins[1:], (outs[0], outs[2]))
        report = verify(suspect, KEY, record=record, trials=1)
        assert [s.name for s in report.sites] == [outs[0].name, outs[2].name]
        assert any("1 of the key's 2 in-sites and 2 of its 3 out-sites" in text for text in report.warnings)

    def test_below_the_minimum_is_refused(self, record):
        ins, outs = chosen(record)
        for names in ([s.name for s in ins], [s.name for s in outs[:2]]):
            report = verify(without(tiny_unet(), names), KEY, record=record)
            assert report.verdict == "not_testable" and "at least 50% of each are needed" in report.reason
            assert report.log10_p is None and report.proves == "nothing"

    def test_record_without_layout_wants_every_site(self, record):
        old = dataclasses.replace(record, layout=None)
        assert key_sites(tiny_unet(), KEY, old) == chosen(record)
        renamed = without(tiny_unet(), [record.layout[0].name])
        assert key_sites(renamed, KEY, old)[1] == chosen(record)[1]  # as many sites: the count cannot tell
        renamed.mid_block = None
        with pytest.raises(NotTestableError, match="6 attention sites, the record names 8"):
            key_sites(renamed, KEY, old)


class TestOtherShapes:
    def test_other_widths(self, record):
        config = dict(tiny_unet().config) | {"block_out_channels": (16, 32)}
        report = verify(UNet2DConditionModel.from_config(config).eval(), KEY, record=record)
        assert report.verdict == "not_testable" and "channels" in report.reason

    def test_other_text_width(self, record):
        report = verify(tiny_unet(cross=16), KEY, record=record)
        assert report.verdict == "not_testable" and "probe inputs" in report.reason

    def test_other_class(self, record):
        with pytest.raises(RecordError, match="UNet2DConditionModel"):
            verify(tiny_unet(), KEY, record=dataclasses.replace(record, denoiser="FluxTransformer2DModel"))

    def test_weights_finite_and_activations_not(self, record):
        unet = tiny_unet()
        unet.conv_in.weight.data.mul_(1e30)
        report = verify(unet, KEY, record=record)
        assert report.verdict == "not_testable" and "not finite" in report.reason

    def test_too_little_memory_says_nothing_of_the_suspect(self, record, monkeypatch):
        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory")

        unet = tiny_unet()
        monkeypatch.setattr(unet.conv_in, "forward", full)
        with pytest.raises(torch.OutOfMemoryError):
            verify(unet, KEY, record=record)
        with pytest.raises(torch.OutOfMemoryError):
            heal_copy(unet, record.bank, record.scheduler, steps=1, seed=0)
        with pytest.raises(torch.OutOfMemoryError):
            embed(unet, KEY, record.bank, scheduler=DDPMScheduler())


class TestOwnRecord:
    def test_a_suspect_read_by_its_own_copy_is_told_of(self, record, tmp_path):
        tiny_unet().save_pretrained(tmp_path / "suspect")
        record.save(tmp_path / "suspect")
        record.save(tmp_path / "mine")
        own = verify(tmp_path / "suspect", KEY, trials=1)
        assert own.verdict == "not_verified" and any("own copy of the record" in text for text in own.warnings)
        for given in (record, tmp_path / "mine"):
            report = verify(tmp_path / "suspect", KEY, record=given, trials=1)
            assert report.log10_p == own.log10_p
            assert not any("own copy of the record" in text for text in report.warnings)


class TestArguments:
    @pytest.mark.parametrize("alpha", [0, 1, -1e-6, 2, float("nan"), float("inf")])
    def test_alpha(self, record, alpha):
        with pytest.raises(ConfigError, match="alpha"):
            verify(tiny_unet(), KEY, record=record, alpha=alpha)

    @pytest.mark.parametrize("fields", [{"trials": 0}, {"trials": -1}, {"amplitudes": ()}, {"amplitudes": (1, 0)}])
    def test_trials_and_looks(self, record, fields):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            verify(tiny_unet(), KEY, record=record, **fields)


class TestRecordFile:
    def test_hash_is_that_of_the_file(self, record, tmp_path):
        import hashlib

        record.save(tmp_path)
        loaded = WatermarkRecord.load(tmp_path)
        assert loaded.layout == record.layout
        digest = hashlib.sha256((tmp_path / FOLDER / DOCUMENT).read_bytes()).hexdigest()
        assert loaded.sha256 == record.sha256 == digest
        assert dataclasses.replace(record, kappa=2.0).sha256 != digest
        altered = dataclasses.replace(record.bank, latents=record.bank.latents + 1)
        assert dataclasses.replace(record, bank=altered).sha256 != digest

    def test_altered_layout(self, record):
        with pytest.raises(RecordError, match="altered"):
            dataclasses.replace(record, layout=record.layout[1:])

    @pytest.mark.parametrize("layout", [5, [["a", 1]], [["a", "x", "y"]] * 8])
    def test_broken_layout(self, record, tmp_path, layout):
        import json

        record.save(tmp_path)
        path = tmp_path / FOLDER / DOCUMENT
        path.write_text(json.dumps({**json.loads(path.read_text()), "layout": layout}))
        with pytest.raises(RecordError):
            WatermarkRecord.load(tmp_path)


class TestLooks:
    def test_a_trigger_that_overflows_ends_its_own_looks_only(self, record):
        report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0, 3e38, 2.0))
        assert [look["label"] for look in report.looks] == [
            f"amplitude {seen}" for seen in ("x1", "x1, ranks", "x1, whitened", "x2", "x2, ranks")
        ]
        assert report.verdict == "not_verified"
        assert any("'amplitude x3e+38' ended early" in text for text in report.warnings)
        alone = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(3e38,))
        assert alone.verdict == "not_testable" and "overflows" in alone.reason

    def test_the_whitened_look_can_be_left_out(self, record):
        costs = {}
        for whiten in (True, False):
            report = verify(tiny_unet(), KEY, record=record, trials=2, whiten=whiten)
            assert whiten == any(look["label"].endswith("whitened") for look in report.looks)
            costs[whiten] = report.denoiser_evals
        assert costs == {True: 3 * 2 * 2 + 80, False: 3 * 2 * 2}

    def test_an_unmarked_models_figures_are_of_the_look_that_came_nearest(self, record):
        seen = set()
        for seed in range(16):
            report = verify(tiny_unet(), KEY, record=record, trials=1, seed=seed)
            nearest = min(report.looks, key=lambda look: (look["log10_p_adjusted"], look["log10_p"]))
            by_ranks = any("by rank scores" in text for text in report.warnings)
            assert by_ranks == nearest["label"].endswith(("ranks", "whitened"))
            assert report.controls["wrong_response"]["n"] == (20 if by_ranks else 100)
            if not by_ranks:
                together = combined_log10_p([(t.channels, t.channels // 2, t.hits) for t in report.sites])
                assert together == pytest.approx(nearest["log10_p"])
            seen.add(by_ranks)
        assert seen == {True, False}

    @pytest.mark.parametrize("data", ["bank", "other channels"])
    def test_healing_inside_no_grad_and_on_data_that_does_not_fit(self, record, monkeypatch, data):
        monkeypatch.setattr(plan_run, "STEPS", 2)
        given = True if data == "bank" else LatentData(torch.randn(2, 3, 8, 8), {})
        with torch.no_grad():
            report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,), healing=given)
        assert report.verdict == "not_verified"
        healed = [look["label"] for look in report.looks if look["label"].startswith("healed")]
        refused = [text for text in report.warnings if "healing looks are not available" in text]
        assert (len(healed), len(refused)) == ((3, 0) if data == "bank" else (0, 1))
