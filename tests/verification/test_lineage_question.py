"""An adapter's file is read alone too, beside the base or in place of one, and the two claims are kept apart."""

import copy
import dataclasses
import json
from html import unescape
from pathlib import Path

import pytest
from _carried import KEY, carrier_record, carry, gradient_lora, latents, text_unet
from _tiny import learner, mark_bound
from peft import LoraConfig

from aiao_diffusers import WatermarkRecord, verify
from aiao_diffusers.denoiser.probes import Probes
from aiao_diffusers.errors import ConfigError, KeyMismatchError, RecordError, SuspectError
from aiao_diffusers.lineage.reading import CLAIMS
from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.mark.carried import carried
from aiao_diffusers.protocol.leaves import disclose
from aiao_diffusers.verification.claims import PROVES, UNPROVEN
from aiao_diffusers.verification.plan import ReadingPlan


FEW = {"trials": 1, "amplitudes": (1.0,)}


@pytest.fixture(scope="module")
def mark() -> WatermarkRecord:
    return carrier_record()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """LoRAs of one gradient step: on the model that carries the key's directions, and on its clean twin."""
    folder, marked = tmp_path_factory.mktemp("files"), text_unet()
    carry(marked)
    return {
        "own": gradient_lora(marked, folder / "own.safetensors"),
        "clean": gradient_lora(text_unet(), folder / "clean.safetensors"),
        "keys alone": gradient_lora(marked, folder / "keys.safetensors", targets=("to_k",)),
    }


class TestBeside:
    """With a base the verdict is on what runs, and the lineage stands beside it."""

    @pytest.mark.slow
    def test_a_file_that_inherited_the_directions_verifies_beside_a_base_without_a_mark(self, mark, files):
        report = verify(files["own"], KEY, text_unet(), mark, **FEW)
        assert report.verdict == "not_verified" and report.proves == "nothing" and not report.asks_lineage
        assert report.lineage["verdict"] == "verified" and report.lineage["log10_p"] < -6
        assert report.lineage["kind"] == "adapter" and report.lineage["share"] == 1.0
        for page in (report.to_markdown(), unescape(report.to_html())):
            assert CLAIMS["adapter"] in page and PROVES["nothing"] in page and PROVES["lineage"] not in page
        json.dumps(report.to_dict())

    @pytest.mark.slow
    def test_an_unmarked_file_and_a_wrong_key_do_not(self, mark, files):
        clean = verify(files["clean"], KEY, text_unet(), mark, **FEW)
        wrong = verify(files["own"], KEY.child("wrong"), text_unet(), mark, **FEW)
        for report in (clean, wrong):
            assert report.lineage["verdict"] == "not_verified" and report.lineage["claim"] == ""
            assert "does not show on which model" in report.to_markdown()

    @pytest.mark.slow
    def test_commitments_are_paid_for(self, mark, files):
        one, ten = (
            verify(files["own"], KEY, text_unet(), mark, commitments=count, **FEW).lineage["log10_p"]
            for count in (1, 10)
        )
        assert ten == pytest.approx(one + 1)

    @pytest.mark.slow
    def test_the_sites_are_those_of_the_record_whatever_base_was_chosen(self, mark, files):
        fewer = text_unet(up_block_types=("UpBlock2D", "UpBlock2D"))
        short = dataclasses.replace(mark, lineage=carried(0.25, fewer))
        found = verify(files["own"], KEY, text_unet(), short, **FEW).lineage
        names = {site["name"] for site in found["sites"]}
        assert names == {site.name for site in plan_carrier(fewer).sites} and found["share"] == 1.0

    @pytest.mark.slow
    def test_a_control_that_holds_the_directions_takes_the_claim_away(self, mark, carrying):
        other = verify(carrying, KEY, record=mark, controls=text_unet(), **FEW)
        assert other.lineage["verdict"] == "verified" and CLAIMS["weights"] in other.to_markdown()
        report = verify(carrying, KEY, record=mark, controls={"twin?": copy.deepcopy(carrying)}, **FEW)
        assert report.lineage["verdict"] == "not_testable" and report.lineage["claim"] == ""
        assert CLAIMS["weights"] not in report.to_markdown() and "the control twin? holds" in report.to_markdown()

    @pytest.mark.slow
    def test_its_warnings_stand_in_the_report(self, mark, carrying):
        unet = copy.deepcopy(carrying)
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        report = verify(unet, KEY, record=mark, **FEW)
        assert "lineage: the adapters ['default'] took no part" in report.to_markdown()

    def test_without_a_carrier_and_of_a_model_there_is_none(self, mark, files):
        plain = dataclasses.replace(mark, lineage=None)
        report = verify(files["own"], KEY, text_unet(), plain, **FEW)
        assert report.lineage is None and "lineage" not in report.to_markdown() and report.proves == "nothing"


@pytest.fixture(scope="module")
def carrying():
    """A model that carries the key's directions; its sub-paths answer nothing."""
    unet = text_unet()
    carry(unet)
    return unet


class TestWeights:
    """A whole model's weights hold the directions themselves; that stands beside its main verdict."""

    def test_beside_the_verdict_on_sub_paths(self, mark, carrying):
        report = verify(carrying, KEY, record=mark, **FEW)
        assert report.verdict == "not_verified" and report.proves == "nothing" and not report.asks_lineage
        assert report.lineage["kind"] == "weights" and report.lineage["verdict"] == "verified"
        assert report.lineage["log10_p"] < -100 and report.lineage["share"] == 1.0
        for page in (report.to_markdown(), unescape(report.to_html())):
            assert CLAIMS["weights"] in page and "weights alone" in page and "adapter's file" not in page

    def test_the_clean_twin_and_a_wrong_key_do_not(self, mark, carrying):
        for unet, key in ((text_unet(), KEY), (carrying, KEY.child("wrong"))):
            report = verify(unet, key, record=mark, **FEW)
            assert report.lineage["verdict"] != "verified" and report.lineage["claim"] == ""

    def test_of_an_adapter_it_is_the_file_that_is_read(self, mark, carrying, files):
        report = verify(files["clean"], KEY, carrying, mark, **FEW)
        assert report.lineage["kind"] == "adapter" and report.lineage["verdict"] == "not_verified"


class TestACarrierAlone:
    """A mark without sub-paths: lineage is the only question, of adapters and of models."""

    @pytest.fixture(scope="class")
    @classmethod
    def only(cls, mark) -> WatermarkRecord:
        return dataclasses.replace(mark, lineage=carried(0.25, text_unet(), only=True))

    def test_a_model_is_read_by_its_weights(self, only, carrying):
        report = verify(carrying, KEY, record=only)
        assert report.verified and report.proves == "lineage in weights" and report.denoiser_evals == 0
        assert report.plan["looks"] == ["weights"] and report.hashes["suspect"] is not None and report.warnings == ()
        for page in (report.to_markdown(), unescape(report.to_html())):
            assert PROVES["lineage in weights"] in page and PROVES["descent"] not in page
            assert "carrier site" in page and "adapter's file" not in page
        wrong = verify(carrying, KEY.child("wrong"), record=only)
        clean = verify(text_unet(), KEY, record=only)
        assert wrong.verdict == "not_verified" and not clean.verified and wrong.log10_p > -3
        assert "do not show" in wrong.proves_in_words

    def test_an_adapter_is_read_by_its_file_whatever_it_lies_on(self, only, files):
        report = verify(files["own"], KEY, text_unet(), only)
        assert report.verified and report.proves == "lineage" and report.base is None
        assert any("base took no part" in text for text in report.warnings)
        assert not any("base took" in text for text in verify(files["own"], KEY, record=only).warnings)

    @pytest.mark.parametrize("name", ["clean_twin", "reference", "healing"])
    def test_what_takes_forwards_is_refused(self, only, carrying, name):
        with pytest.raises(ConfigError, match=f"{name}= .*carrier alone.*leave it out"):
            verify(carrying, KEY, record=only, **{name: True})

    def test_controls_are_models(self, only, carrying, files):
        controls = {"plain": text_unet(), "adapter": files["clean"], "itself": carrying}
        report = verify(carrying, KEY, record=only, controls=controls)
        assert report.verdict == "not_testable" and "the control itself verifies too" in report.reason
        assert report.controls["adapter"]["verdict"] == "not_testable"
        assert any("needs a whole model" in text for text in report.warnings)

    def test_another_class_is_misuse(self, only):
        with pytest.raises(RecordError, match="UNet2DModel"):
            verify(learner()[0], KEY, record=only)


class TestAlone:
    """Without a base the question is another one, and the report says so everywhere."""

    def read(self, files, mark, name="own", key=KEY, **options):
        return verify(files[name], key, record=mark, **options)

    def test_the_verdict_is_on_the_lineage(self, files, mark):
        seen = []
        report = self.read(files, mark, callback=lambda taken, planned: seen.append((taken, planned)))
        assert report.verified and report.proves == "lineage" and report.asks_lineage and report.log10_p < -20
        assert report.denoiser_evals == 0 and report.trials == 0 and report.base is None and report.kind == "lora"
        assert report.lineage["log10_p"] == report.log10_p >= report.log10_p_floor and len(report.sites) == 24
        assert (
            report.plan["name"] == "lineage" and report.plan["looks"] == ["ones", "top"] and seen == [(1, 2), (2, 2)]
        )
        assert [look["label"] for look in report.looks] == report.plan["looks"]
        assert report.hashes["suspect"] == report.lineage["sha256"] and report.hashes["record"] == mark.sha256
        assert report.warnings == () and report.dating["scheme"] == "aiao-1" and report.bit_accuracy > 0.6

    def test_clean_twin_wrong_key_and_other_draws_do_not_verify(self, files, mark):
        for report in (self.read(files, mark, "clean"), self.read(files, mark, key=KEY.child("wrong"))):
            assert report.verdict == "not_verified" and report.proves == "nothing" and report.log10_p > -3
            assert "does not show on which model" in report.proves_in_words
        assert any("commits to another key" in text for text in report.warnings)
        assert report.hashes["commitment"] == KEY.child("wrong").commitment

    def test_for_people(self, files, mark):
        report = self.read(files, mark)
        for page in (report.to_markdown(), unescape(report.to_html())):
            assert PROVES["lineage"] in page and "carrier site" in page and "out-site" not in page
            assert PROVES["carries"] not in page and "None" not in page and "verification rate" not in page
        assert UNPROVEN["lineage"] in unescape(report.to_html())
        assert report.to_html().count("data:image/png;base64,") == 2  # bits by site, and the null
        assert "does not show" in self.read(files, mark, "clean").to_markdown()

    def test_commitments_are_paid_for(self, files, mark):
        one, ten = (self.read(files, mark, commitments=count) for count in (1, 10))
        assert ten.log10_p == pytest.approx(one.log10_p + 1) and ten.plan["commitments"] == 10
        assert not self.read(files, mark, plan=ReadingPlan(alpha=1e-200)).verified

    @pytest.mark.parametrize(
        "options",
        [
            {"clean_twin": "base/"},
            {"reference": "r.safetensors"},
            {"healing": True},
            {"clean_twin": "x", "reference": "y"},
        ],
    )
    def test_what_only_a_reading_with_forwards_takes_is_refused_by_name(self, files, mark, options):
        name = next(iter(options))
        with pytest.raises(ConfigError, match=f"{name}= .*--{name.replace('_', '-')}.*without a base.*base="):
            self.read(files, mark, **options)

    def test_probes_are_refused_too(self, files, mark):
        probes = Probes(latents(), {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}, "p", 0, None)
        with pytest.raises(ConfigError, match="probes="):
            self.read(files, mark, probes=probes)

    def test_what_the_plan_says_of_forwards_is_warned_of(self, files, mark):
        report = self.read(files, mark, plan=ReadingPlan.fast(trials=2))
        assert report.verified and any("trials, futility" in text for text in report.warnings)

    def test_a_record_without_a_carrier_is_not_testable_and_the_fix_is_named(self, files, mark):
        report = self.read(files, dataclasses.replace(mark, lineage=None))
        assert report.verdict == "not_testable" and report.log10_p is None and report.plan["name"] == "lineage"
        assert "base= (or --base)" in report.reason and "carrier" in report.reason
        assert "base=" in report.to_markdown() and "base=" in report.to_html()

    def test_without_a_record_or_with_another_s_it_is_misuse(self, files, mark, tmp_path):
        with pytest.raises(SuspectError, match="base=.*record="):
            verify(files["own"], KEY)
        mark.save(tmp_path)
        with pytest.raises(KeyMismatchError):
            verify(files["own"], KEY.child("x"), record=tmp_path)
        strange = {**mark.lineage, "architecture": {**mark.lineage["architecture"], "layers_per_block": 10**6}}
        with pytest.raises(RecordError, match="architecture"):
            self.read(files, dataclasses.replace(mark, lineage=strange))

    def test_layers_without_a_direction_are_not_testable(self, files, mark):
        report = self.read(files, mark, "keys alone")
        assert report.verdict == "not_testable" and "carrier sites" in report.reason and report.lineage["share"] == 0

    def test_the_suspects_own_copy_of_the_record_is_said(self, files, mark, tmp_path):
        for name, warned in (("clean", True), ("own", False)):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "lora.safetensors").write_bytes(files[name].read_bytes())
            mark.save(folder)
            report = verify(folder, KEY)
            assert any("own copy" in text for text in report.warnings) is warned
            assert report.verified is not warned

    def test_every_file_of_a_folder_is_asked_the_same(self, files, mark, tmp_path):
        for name in ("own", "clean"):
            (tmp_path / f"{name}.safetensors").write_bytes(files[name].read_bytes())
        report = verify(tmp_path, KEY, record=mark, weight_name="own.safetensors", all_candidates=True)
        assert report.verified and report.proves == "lineage"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mark is too weak")
def test_under_scheme_aiao_2_the_directions_take_the_beacon(tmp_path):
    unet, record = mark_bound(lineage=0.25)
    data = learner()[1]
    own = gradient_lora(unet, tmp_path / "own.safetensors", data, ("to_q", "to_v", "to_out.0"))
    clean = gradient_lora(learner()[0], tmp_path / "clean.safetensors", data, ("to_q", "to_v", "to_out.0"))
    record.save(tmp_path / "marked")
    report = verify(own, KEY, record=tmp_path / "marked")
    assert report.verified and report.proves == "lineage" and report.log10_p < -6
    assert report.dating["scheme"] == "aiao-2" and report.dating["assumption"] in report.to_markdown()
    for other in (verify(clean, KEY, record=record), verify(own, KEY.child("wrong"), record=record)):
        assert other.verdict == "not_verified" and other.log10_p > -3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the mark is too weak")
def test_a_leaf_tells_of_no_direction(tmp_path):
    unet, record = mark_bound()
    file = gradient_lora(unet, tmp_path / "x.safetensors", learner()[1], ("to_q", "to_v"))
    report = verify(file, disclose(KEY, record, 1), record=record)
    assert report.verdict == "not_testable" and "whole key" in report.reason and "base=" in report.reason


class TestControls:
    @pytest.mark.slow
    def test_an_adapter_is_asked_the_same_question(self, files, mark):
        report = verify(files["own"], KEY, record=mark, controls={"twin's": files["clean"]})
        assert report.verified and report.controls["twin's"]["verdict"] == "not_verified"
        assert report.controls["twin's"]["log10_p"] > -3 and report.warnings == ()
        report = verify(files["own"], KEY, record=mark, controls=[files["own"]])
        assert report.verdict == "not_testable" and "verifies too" in report.reason

    def test_a_whole_model_cannot_answer_and_that_is_said(self, files, mark, tmp_path):
        text_unet().save_pretrained(tmp_path / "model")
        for model in (text_unet(), tmp_path / "model"):
            report = verify(files["own"], KEY, record=mark, controls={"plain": model})
            assert report.verified and report.controls["plain"]["verdict"] == "not_testable"
            assert any("plain was not read" in text and "whole model" in text for text in report.warnings)
