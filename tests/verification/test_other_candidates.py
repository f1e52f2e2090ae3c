"""Every file of an upload is a suspect of its own where that is asked for; which one is judged does not change."""

import json
import math
from pathlib import Path

import pytest
import torch
from _shipped import ASSETS, DEMO
from _tiny import BOTH_LEVELS, factors, tiny_unet, write
from diffusers import UNet2DConditionModel
from safetensors.torch import save, save_file

from aiao_diffusers import WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.errors import SeveralSuspectsError, SuspectError, UnsafeFileError
from aiao_diffusers.verification.other_candidates import read_others, warn_of_unread
from aiao_diffusers.verification.plan import ReadingPlan
from aiao_diffusers.verification.report import VerificationReport
from tests.hub_server import HubServer
from tests.samples import card
from tests.suspects import LORA, UNET, folder


KEY = WatermarkKey(bytes(range(32)), "Demo")
STEM = "diffusion_pytorch_model"


def beside(*paths: str, kind: str = "denoiser") -> tuple[dict[str, str], ...]:
    return tuple({"path": path, "kind": kind, "why": "somebody loads it"} for path in paths)


class TestAdjustment:
    """By reports made up here: five files, of which the judged one and one other reach alpha by themselves."""

    P = {"a": -8.0, "b": -0.1, "c": -6.4, "d": -0.3}

    def read(self, judged: float, alpha: float = 1e-6) -> VerificationReport:
        verdict = "verified" if judged <= math.log10(alpha) else "not_verified"
        first = VerificationReport(verdict, "x", alpha, log10_p=judged, also_present=beside(*self.P))

        def ask(weight_name: str, plan: ReadingPlan) -> VerificationReport:
            assert plan.alpha == alpha / 5
            return VerificationReport("not_verified", "x", plan.alpha, log10_p=self.P[weight_name])

        return read_others(first, ask, ReadingPlan.thorough())

    def test_the_others_are_adjusted_and_the_judged_file_is_not(self):
        report = self.read(-6.1)
        found = {item["path"]: item for item in report.also_present}
        assert report.verdict == "verified" and report.log10_p == -6.1
        assert found["a"]["log10_p_holm"] == pytest.approx(-8 + math.log10(5)) and found["a"]["verdict"] == "verified"
        # alone it would verify; among five it is one of the chances taken
        assert (
            found["c"]["log10_p_holm"] == pytest.approx(-6.4 + math.log10(4))
            and found["c"]["verdict"] == "not_verified"
        )
        assert [item["log10_p"] for item in report.also_present] == list(self.P.values())

    def test_a_verdict_that_differs_is_a_warning(self):
        told = self.read(-0.5)
        assert told.verdict == "not_verified" and len(told.warnings) == 1
        assert (
            told.warnings[0].startswith("a is verified") and "judged file, which is not_verified" in told.warnings[0]
        )
        assert len(self.read(-9.0).warnings) == 3  # b, c and d do not verify

    def test_a_broken_neighbour_and_a_pickle_are_told(self):
        entries = (*beside("broken"), *beside("x.bin", kind="pickle"))

        def ask(**_: object) -> VerificationReport:
            raise UnsafeFileError("hostile")

        report = VerificationReport("not_testable", "x", 1e-6, also_present=entries)
        broken, pickle = read_others(report, ask, ReadingPlan.thorough()).also_present
        assert (broken["verdict"], broken["log10_p"], broken["reason"]) == ("not_testable", None, "hostile")
        assert "verdict" not in pickle


class TestVerify:
    @pytest.mark.slow
    def test_what_lies_beside_is_in_every_form_of_the_report(self, record, tmp_path):
        tiny_unet().save_pretrained(tmp_path, variant="fp16")
        tiny_unet(1).save_pretrained(tmp_path)
        report = verify(tmp_path, KEY, record=record, trials=1)
        assert [item["path"] for item in report.to_dict()["also_present"]] == [f"{STEM}.fp16.safetensors"]
        assert (
            f"- also present: {STEM}.fp16.safetensors (denoiser): from_pretrained(variant='fp16')"
            in report.to_markdown()
        )
        assert f"also present: {STEM}.fp16.safetensors" in report.to_html()
        assert any("it also holds" in text and "--all" in text for text in report.warnings)
        named = verify(tmp_path, KEY, record=record, trials=1, weight_name=f"{STEM}.fp16.safetensors")
        assert named.also_present == () and named.hashes["suspect"] != report.hashes["suspect"]

    def test_all_of_a_folder_without_a_judged_file(self, record, tmp_path):
        """Two adapters: neither is judged, and with `all_candidates` both are read."""
        base = tiny_unet()
        write(tmp_path, "peft", factors(base, BOTH_LEVELS, 2), 1.0)
        write(tmp_path, "kohya", factors(base, BOTH_LEVELS, 2), 2.0)
        with pytest.raises(SeveralSuspectsError, match="weight_name="):
            verify(tmp_path, KEY, base, record=record, trials=1)
        report = verify(tmp_path, KEY, base, record=record, trials=1, all_candidates=True)
        assert report.verdict == "not_testable" and "several candidates" in report.reason
        assert {item["path"]: item["verdict"] for item in report.also_present} == {
            "adapter_model.safetensors": "not_verified",
            "kohya.safetensors": "not_verified",
        }

    @pytest.mark.slow
    def test_a_bare_file_and_an_adapter_are_read_on_the_folders_own_denoiser(self, record, tmp_path):
        tiny_unet().save_pretrained(tmp_path / "unet")
        write(tmp_path, "kohya", factors(tiny_unet(), BOTH_LEVELS, 2), 2.0)
        save_file(tiny_unet(1).state_dict(), tmp_path / "whole.safetensors")
        report = verify(tmp_path, KEY, record=record, trials=1, all_candidates=True)
        assert [(item["path"], item["verdict"]) for item in report.also_present] == [
            ("kohya.safetensors", "not_verified"),
            ("whole.safetensors", "not_verified"),
        ]
        named = verify(tmp_path, KEY, record=record, trials=1, weight_name="kohya.safetensors")
        assert named.adapter["modules"] == 2 and any("no base was given" in text for text in named.warnings)
        given = verify(tmp_path / "kohya.safetensors", KEY, tiny_unet(), record=record, trials=1)
        assert given.log10_p == named.log10_p

    @pytest.mark.slow
    def test_a_whole_model_beside_an_adapter_is_not_testable_and_each_is_read(self, record, tmp_path):
        base = tiny_unet()
        write(tmp_path, "kohya", factors(base, BOTH_LEVELS, 2), 2.0)
        save_file(tiny_unet(1).state_dict(), tmp_path / "whole.safetensors")
        report = verify(tmp_path, KEY, base, record=record, trials=1, all_candidates=True)
        assert report.verdict == "not_testable" and "files of several kinds: denoiser, lora" in report.reason
        assert "does not change" not in report.reason
        assert {(item["kind"], item["verdict"]) for item in report.also_present} == {
            ("lora", "not_verified"),
            ("denoiser", "not_verified"),
        }

    def test_a_file_that_is_not_testable_still_names_its_neighbours(self, record, tmp_path):
        broken = tiny_unet()
        broken.conv_in.weight.data.fill_(torch.nan)
        broken.save_pretrained(tmp_path)
        tiny_unet().save_pretrained(tmp_path, variant="fp16")
        report = verify(tmp_path, KEY, record=record, trials=1, all_candidates=True)
        assert report.verdict == "not_testable" and report.also_present[0]["verdict"] == "not_verified"


def unet(name: str) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(ASSETS / name / "unet")


@pytest.fixture(scope="module")
def models() -> dict[str, UNet2DConditionModel]:
    return {"marked": unet("marked"), "base": unet("base")}


@pytest.mark.slow
class TestExampleModel:
    """Uploads of the example's marked and clean weights, written by stock diffusers, each with its control turned round."""

    def read(self, path: str | Path, **options: object) -> VerificationReport:
        return verify(path, DEMO, record=ASSETS / "marked", plan=ReadingPlan.fast(), **options)

    @pytest.mark.parametrize(
        ("runs", "other", "verdict"), [("base", "marked", "not_verified"), ("marked", "base", "verified")]
    )
    def test_a_whole_file_beside_the_shards_that_run(self, models, tmp_path, runs, other, verdict):
        models[other].save_pretrained(tmp_path)
        models[runs].save_pretrained(tmp_path, max_shard_size="5MB")
        report = self.read(tmp_path, all_candidates=True)
        (beside,) = report.also_present
        assert report.verdict == verdict and beside["path"] == f"{STEM}.safetensors"
        assert {verdict, beside["verdict"]} == {"verified", "not_verified"}
        assert any("not as the judged file" in text for text in report.warnings)

    @pytest.mark.parametrize(
        ("plain", "other", "verdict"), [("base", "marked", "not_verified"), ("marked", "base", "verified")]
    )
    def test_another_variant_is_named(self, models, tmp_path, plain, other, verdict):
        models[plain].save_pretrained(tmp_path)
        models[other].save_pretrained(tmp_path, variant="fp16")
        report = self.read(tmp_path)
        assert report.verdict == verdict and report.also_present[0]["path"] == f"{STEM}.fp16.safetensors"
        assert any("fp16" in text for text in report.warnings)

    @pytest.mark.parametrize(
        ("name", "other", "verdict"), [("marked", "base", "verified"), ("base", "marked", "not_verified")]
    )
    def test_a_training_scripts_checkpoint(self, models, tmp_path, name, other, verdict):
        models[name].save_pretrained(tmp_path / "unet")
        models[other].save_pretrained(tmp_path / "unet_ema")
        torch.save({}, tmp_path / "optimizer.bin")
        (tmp_path / "random_states_0.pkl").write_bytes(b"\x80\x04")
        report = self.read(tmp_path)
        assert report.verdict == verdict
        assert [item["path"] for item in report.also_present] == [f"unet_ema/{STEM}.safetensors"]

    @pytest.mark.parametrize(("name", "verdict"), [("marked", "verified"), ("base", "not_verified")])
    def test_the_users_own_link(self, tmp_path, name, verdict):
        (tmp_path / "link").symlink_to(ASSETS / name)
        assert self.read(tmp_path / "link").verdict == verdict

    def test_a_repository_by_its_listing(self, hub: HubServer, models, tmp_path):
        models["marked"].save_pretrained(tmp_path, variant="fp16")
        variant = f"{STEM}.fp16.safetensors"
        hub.add_repo("user/both", {**folder("base", "unet", "model_index"), f"unet/{variant}": tmp_path / variant})
        report = verify("user/both", DEMO, record=ASSETS / "marked", plan=ReadingPlan.fast(), all_candidates=True)
        (beside,) = report.also_present
        assert (report.verdict, beside["path"], beside["verdict"]) == ("not_verified", f"unet/{variant}", "verified")
        assert report.source["suspect"]["file"] == "unet"
        # the cache holds the variant now; the judged file is by the listing all the same
        again = verify("user/both", DEMO, record=ASSETS / "marked", plan=ReadingPlan.fast())
        assert again.log10_p == report.log10_p and json.dumps(again.to_dict()["also_present"])
        named = verify(
            "user/both", DEMO, record=ASSETS / "marked", plan=ReadingPlan.fast(), weight_name=f"unet/{variant}"
        )
        assert named.verified and named.source["suspect"]["file"] == f"unet/{variant}" != UNET

    @pytest.mark.parametrize(("name", "other"), [("marked", "base"), ("base", "marked")])
    def test_bare_files_of_a_repository_are_read_on_its_own_denoiser(self, hub: HubServer, models, name, other):
        """An adapter without a declared base, and a whole model without a config."""
        bare = save({f"module.{key}": value for key, value in models[other].state_dict().items()})
        files = {**folder(name, "unet", "model_index"), LORA: ASSETS / "lora" / LORA, "bare.safetensors": bare}
        hub.add_repo("user/bare", files)
        report = self.read("user/bare", all_candidates=True)
        verdict = {"marked": "verified", "base": "not_verified"}
        assert report.verdict == verdict[name]
        assert {item["path"]: item["verdict"] for item in report.also_present} == {
            LORA: verdict[name],
            "bare.safetensors": verdict[other],
        }
        assert not any("also holds" in text for text in report.warnings)  # each was read
        named = self.read("user/bare", weight_name=LORA)
        assert named.verdict == verdict[name] and any("denoiser of the repository" in text for text in named.warnings)
        options = {"record": WatermarkRecord.load(ASSETS / "marked"), "plan": ReadingPlan.fast()}
        wrong = verify("user/bare", DEMO.child("wrong"), **options, all_candidates=True)
        assert {wrong.verdict, *(item["verdict"] for item in wrong.also_present)} == {"not_verified"}

    def test_a_declared_base_comes_before_the_repositorys_own_denoiser(self, hub: HubServer):
        hub.add_repo("acme/sd", folder("marked"))
        files = {**folder("base", "unet", "model_index"), LORA: ASSETS / "lora" / LORA}
        hub.add_repo("user/declared", {**files, "README.md": card(base_model="acme/sd")})
        report = self.read("user/declared", all_candidates=True)
        (beside,) = report.also_present
        assert (report.verdict, beside["verdict"]) == ("not_verified", "verified")


class TestWithoutABase:
    """Nothing is read on the marked model unasked: every adapter of its shapes would verify there."""

    def test_the_error_says_which_option_to_pass(self, hub: HubServer, record, tmp_path):
        write(tmp_path, "kohya", factors(tiny_unet(), BOTH_LEVELS, 2), 2.0)
        save_file(tiny_unet(1).state_dict(), tmp_path / "whole.safetensors")
        hub.add_repo("user/bare", {path.name: path for path in tmp_path.iterdir()})
        for source in ("user/bare", tmp_path):
            told = r"whole\.safetensors' in .*holds weights without a config.*as base= \(or --base\)"
            with pytest.raises(SuspectError, match=told):
                verify(source, KEY, record=record, trials=1, weight_name="whole.safetensors")
            with pytest.raises(SuspectError, match=r"kohya\.safetensors' in .*is a LoRA.*as base= \(or --base\)"):
                verify(source, KEY, weight_name="kohya.safetensors")
            report = verify(source, KEY, record=record, weight_name="kohya.safetensors")
            assert report.verdict == "not_testable" and "as base= (or --base)" in report.reason

    def test_the_reason_of_each_candidate_does_too(self, hub: HubServer, record, tmp_path):
        for seed in (1, 2):
            write(tmp_path / str(seed), "kohya", factors(tiny_unet(), BOTH_LEVELS, 2, seed), 2.0)
        hub.add_repo("user/two", {f"{n}.safetensors": tmp_path / n / "kohya.safetensors" for n in "12"})
        report = verify("user/two", KEY, record=record, trials=1, all_candidates=True)
        assert [item["verdict"] for item in report.also_present] == ["not_testable"] * 2
        assert all("as base= (or --base)" in item["reason"] for item in report.also_present)
        report = verify("user/two", KEY, tiny_unet(), record=record, trials=1, all_candidates=True)
        assert [item["verdict"] for item in report.also_present] == ["not_verified"] * 2


class TestWarningOfWhatWasNotRead:
    def warn(self, *told: dict[str, object]) -> list[str]:
        entries = tuple({"why": "somebody loads it", **item} for item in told)
        report = VerificationReport("not_verified", "x", 1e-6, also_present=entries)
        assert warn_of_unread(report, "").warnings == ()
        return list(warn_of_unread(report, "unet").warnings)

    def test_only_what_was_not_read_is_named(self):
        lora, pickle = {"path": "a", "kind": "lora"}, {"path": "b.bin", "kind": "pickle"}
        read = {"path": "c", "kind": "lora", "verdict": "verified", "log10_p": -9.0}
        broken = {"path": "d", "kind": "lora", "verdict": "not_testable", "log10_p": None}
        assert self.warn() == self.warn(read) == []
        (text,) = self.warn(lora, pickle)
        assert text.startswith("unet was read; it also holds 'a, b.bin'") and "(--all)" in text
        assert self.warn(read, broken, pickle) == ["unet was read; it also holds 'd, b.bin', which could not be read."]
        assert self.warn(pickle) == ["unet was read; it also holds 'b.bin', which could not be read."]
