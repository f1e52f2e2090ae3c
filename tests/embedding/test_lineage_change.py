"""The lineage carrier as embedding puts it in: beside the mark on sub-paths, alone, committed to, and taken back on failure."""

import json
import warnings

import pytest
from _carried import ATTENTION, SCHEDULER, latents, text_unet, train_lora
from _tiny import LEARN, learner, same, weights

from aiao_diffusers import EmbedConfig, WatermarkKey, WatermarkRecord, embed
from aiao_diffusers.embedding import lineage_change
from aiao_diffusers.embedding.commit import commit
from aiao_diffusers.errors import AlreadyMarkedError, ConfigError, SiteError
from aiao_diffusers.lineage.blank import blank_of
from aiao_diffusers.lineage.carrier import add_carrier
from aiao_diffusers.lineage.reading import read_lineage
from aiao_diffusers.lineage.sites import CarrierPlan
from aiao_diffusers.mark.committed import LINEAGE
from aiao_diffusers.protocol.beacon import by_hand


KEY = WatermarkKey(bytes(range(32)), "Demo")
ALONE = {"lineage_only": True, "steps": 0}
FEW = LEARN | {"steps": 2, "lineage": EmbedConfig.lineage}


def run(unet=None, key=KEY, commitment=None, callback=None, earlier=None, **changes):
    model, data, scheduler = learner()
    unet = model if unet is None else unet
    config, options = EmbedConfig(**(FEW | changes)), {"scheduler": scheduler, "earlier": earlier}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a mark of few steps
        return unet, embed(unet, key, data, config, callback, commitment=commitment, allow_marked=True, **options)


def committed(**changes):
    unet, data, scheduler = learner()
    made = commit(unet, KEY, data, EmbedConfig(**(FEW | changes)), scheduler=scheduler).commitment
    return made.with_companions(beacon=json.dumps(by_hand("drawn").to_dict()).encode())


class TestEmbed:
    def test_is_there_by_default_at_no_price_and_in_the_record(self, tmp_path):
        unet, report = run()
        assert report.lineage.sites and report.lineage.price < 1e-6 and report.lineage_left_out == ""
        assert report.record.lineage["strength"] == 0.25 and not report.record.lineage["only"]
        report.record.save(tmp_path)
        blank = blank_of(WatermarkRecord.load(tmp_path))
        assert [tuple(p.shape) for p in blank.parameters()] == [tuple(p.shape) for p in unet.parameters()]
        assert report.to_dict()["lineage"]["strength"] == 0.25

    def test_none_on_request(self):
        _, report = run(lineage=0)
        assert report.lineage is None and report.record.lineage is None and report.lineage_left_out == "lineage=0"

    def test_after_the_mark_and_the_mark_reads_as_without(self):
        _, plain = run(lineage=0)
        _, both = run()
        assert plain.reading.bit_accuracy == both.reading.bit_accuracy
        assert abs(plain.reading.log10_p - both.reading.log10_p) < 1e-2

    def test_a_second_key_has_directions_of_its_own(self):
        unet, first = run()
        with pytest.raises(AlreadyMarkedError, match="lineage=0"):
            run(unet, KEY, earlier=first.record)
        _, second = run(unet, KEY.child("second"), earlier=first.record)
        assert second.lineage.sites == first.lineage.sites

    def test_a_model_without_sites_is_marked_without(self, monkeypatch):
        def refuse(*_, **__):
            raise SiteError("no site")

        monkeypatch.setattr(lineage_change, "add_carrier", refuse)
        _, report = run()
        assert report.lineage is None and report.lineage_left_out == "no site" and report.record.lineage is None
        with pytest.raises(SiteError, match="no site"):
            run(**ALONE)

    @pytest.mark.parametrize("train", ["full", "lazy", "lora"])
    def test_a_failure_gives_the_weights_back(self, train, monkeypatch):
        calls = []

        def fail_at_last(*args, **options):
            calls.append(add_carrier(*args, **options))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return calls[-1]

        monkeypatch.setattr(lineage_change, "add_carrier", fail_at_last)
        unet, data, scheduler = learner()
        with pytest.raises(KeyboardInterrupt):
            embed(unet, KEY, data, EmbedConfig(**(FEW | {"train": train})), scheduler=scheduler)
        assert len(calls) == 2
        if train != "lora":  # whose factors are merged by then
            assert same(weights(unet), weights(learner()[0]))


class TestAlone:
    def test_nothing_is_trained_and_no_output_changes(self):
        unet, report = run(**ALONE)
        assert report.history == [] and report.price < 1e-6 and report.record.lineage["only"] and report.lineage.sites
        assert not same(weights(unet), weights(learner()[0]))

    @pytest.mark.slow
    def test_an_adapter_trained_there_tells_it_and_one_of_the_clean_twin_does_not(self, tmp_path):
        unet = text_unet()
        report = embed(unet, KEY, latents(), EmbedConfig(**(FEW | ALONE)), scheduler=SCHEDULER)
        assert report.reading.verified and report.reading.proves == "lineage in weights"
        blank = text_unet().to("meta")
        own = read_lineage(train_lora(unet, ATTENTION, tmp_path / "own.safetensors"), KEY, blank)
        clean = read_lineage(train_lora(text_unet(), ATTENTION, tmp_path / "clean.safetensors"), KEY, blank)
        wrong = read_lineage(tmp_path / "own.safetensors", KEY.child("wrong"), blank)
        assert own.verdict == "verified" and clean.verdict == wrong.verdict == "not_verified"

    @pytest.mark.parametrize(
        "changes",
        [{"lineage": 0}, {"train": "lazy"}, {"train": "lora"}, {"edit": 1.0}, {"steps": 7}, {"lineage_only": 1}],
    )
    def test_takes_no_recipe_of_training(self, changes):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            EmbedConfig(**({"lineage_only": True} | changes))
        assert EmbedConfig(lineage_only=True).steps == 0

    def test_asks_for_no_more_sites_than_a_small_model_has(self):
        _, report = run(**ALONE, in_sites=5, out_sites=70)
        assert report.lineage.sites and (report.record.in_sites, report.record.out_sites) == (1, 1)

    def test_a_marked_model_of_any_kind_takes_it_and_its_marks_need_no_keeping(self):
        unet, first = run(lineage=0, pairs=True)
        _, second = run(unet, KEY.child("second"), earlier=first.record, **ALONE)
        assert second.record.lineage["only"] and second.reading.verified
        model, data, scheduler = learner()
        with pytest.raises(ConfigError, match="keep.*changes no output.*Leave it out"):
            config = EmbedConfig(**(FEW | ALONE))
            embed(model, KEY, data, config, scheduler=scheduler, keep=[KEY], earlier=first.record, allow_marked=True)


class TestCommitted:
    def test_directions_take_the_beacon(self, tmp_path):
        made = committed()
        unet, report = run(commitment=made)
        assert report.record.scheme == "aiao-2" and report.record.lineage == made.fields[LINEAGE]
        assert report.lineage.sites == run()[1].lineage.sites
        drawn = made.drawn(KEY)
        with pytest.raises(AlreadyMarkedError):
            add_carrier(unet, drawn, learner()[1], scheduler=learner()[2])
        add_carrier(unet, KEY, learner()[1], scheduler=learner()[2])  # other directions without the beacon

    def test_the_configuration_must_be_what_was_committed_to(self):
        for made, changes in (
            (committed(), {"lineage": 0.5}),
            (committed(), {"lineage": 0}),
            (committed(**ALONE), {}),
            (committed(), ALONE),
            (committed(lineage=0), {"lineage": 0.5}),
        ):
            unet, data, scheduler = learner()
            with pytest.raises(ConfigError):
                embed(unet, KEY, data, EmbedConfig(**(FEW | changes)), scheduler=scheduler, commitment=made)
            assert same(weights(unet), weights(learner()[0]))

    def test_one_without_a_carrier_makes_none(self):
        _, report = run(commitment=committed(lineage=0))
        assert report.lineage is None and report.record.lineage is None

    def test_alone(self):
        _, report = run(commitment=committed(**ALONE), **ALONE)
        assert report.record.lineage["only"] and report.record.scheme == "aiao-2"

    def test_a_model_without_sites_cannot_be_committed_to_alone(self, monkeypatch):
        monkeypatch.setattr(lineage_change, "plan_carrier", lambda _: CarrierPlan((), {}))
        assert LINEAGE not in committed().fields or committed().fields[LINEAGE] is None
        with pytest.raises(ConfigError, match="no site"):
            committed(**ALONE)


def test_strength_is_validated():
    for wrong in (-0.1, 4.1, float("nan"), "much", True):
        with pytest.raises(ConfigError, match="lineage"):
            EmbedConfig(lineage=wrong)
