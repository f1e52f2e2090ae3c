"""Rows of suspects: refused ones with their reason, and copies that share one reading."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from _carried import KEY, carrier_record, carry, gradient_lora, text_unet

from aiao_diffusers.errors import (
    BudgetSpentError,
    ConfigError,
    HubError,
    LoraNotLoadedError,
    NotTestableError,
    UnsafeFileError,
    WrongBaseError,
)
from aiao_diffusers.hub.candidates import Candidate
from aiao_diffusers.mark.carried import carried
from aiao_diffusers.scanning.judge import Judge, Question, SuspectFiles, refuse
from aiao_diffusers.scanning.log import ScanRow
from aiao_diffusers.scanning.resident import Resident
from aiao_diffusers.verification.plan import ReadingPlan


PLAIN = SimpleNamespace(asks_lineage=False)
"""A question without lineage, and without anything to read."""
BLANK = ScanRow("u/x", "c" * 40, "w.safetensors", "adapter", ("acme/sd",), "tree", "not_testable")


@pytest.mark.parametrize(
    ("error", "reason", "settled"),
    [
        (UnsafeFileError("a\nb"), "unsafe format: a b", True),
        (WrongBaseError("x"), "other architecture: x", True),
        (LoraNotLoadedError("x"), "changes no denoiser of this kind: x", True),
        (NotTestableError("x"), "x", True),
        (HubError("x"), "out of reach: x", False),  # may be answered by the next scan
        (BudgetSpentError("x"), "x", False),
        (ZeroDivisionError("x"), "unexpected ZeroDivisionError: x", False),
    ],
)
def test_a_refusal_has_its_reason_and_says_whether_it_is_final(error, reason, settled):
    row = refuse(BLANK, error)
    assert (row.verdict, row.reason, row.settled) == ("not_testable", reason, settled)


def test_words_of_strangers_are_printable_and_end():
    assert refuse(BLANK, ConfigError("\x1b[2J" + "y" * 10**6)).reason == "?[2J" + "y" * 396


class TestCopies:
    def judge(self) -> Judge:
        """One that was asked nothing yet; a reading of anything but a copy would fail for want of a denoiser."""
        judge = Judge.__new__(Judge)
        judge.base, judge.question, judge._blank, judge._seen, judge._lineages = _base("b" * 64), PLAIN, None, {}, {}
        return judge

    def test_what_was_read_is_known_by_its_files_and_by_its_tensors(self):
        judge, read = self.judge(), replace(BLANK, log10_p=-9.0, digest="t", file_key=("f",), verdict="verified")
        judge.remember(read)

        def knows(*key: str) -> bool:
            return judge.knows(replace(BLANK, file_key=key))

        assert knows("f") and not knows("g") and not knows()
        judge.remember(replace(BLANK, file_key=("h",)))  # no reading, nothing to share
        judge.remember(replace(read, file_key=("i",), digest="i", copy_of="u/y"))
        assert not knows("h") and not knows("i")

    def test_a_copy_takes_over_the_reading_and_names_its_twin(self):
        judge = self.judge()
        read = replace(BLANK, log10_p=-9.0, distance=0.2, digest="t", file_key=("f",), verdict="verified")
        judge.remember(read)
        asked = replace(BLANK, repo="u/copy", file_key=("f",))
        row = judge.read(SuspectFiles(Candidate("lora", "", (), ()), Path(), asked))
        assert (row.verdict, row.log10_p, row.distance, row.copy_of) == ("verified", -9.0, 0.2, read.label)
        assert row.denoiser_evals == 0 and row.repo == "u/copy" and "read" in row.seconds
        again = judge.read(SuspectFiles(Candidate("lora", "", (), ()), Path(), replace(read, commit="d" * 40)))
        assert again.copy_of is None  # an earlier commit of itself is no other suspect

    def test_what_goes_wrong_is_the_reason(self):
        row = self.judge().read(
            SuspectFiles(Candidate("lora", "", ("gone.safetensors",), ()), Path("/nowhere"), BLANK)
        )
        assert row.verdict == "not_testable" and row.reason and row.log10_p is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """LoRAs of a model with a lineage carrier and of its clean twin, one of layers that inherit nothing, and a cut one."""
    folder, marked = tmp_path_factory.mktemp("files"), text_unet()
    carry(marked)
    gradient_lora(marked, folder / "own.safetensors")
    gradient_lora(text_unet(), folder / "clean.safetensors")
    gradient_lora(marked, folder / "keys.safetensors", targets=("to_k",))
    (folder / "cut.safetensors").write_bytes((folder / "own.safetensors").read_bytes()[:1000])
    return folder


@pytest.mark.slow
class TestLineage:
    """On a base without the mark, so that the two questions differ."""

    def judge(self, **changes: object) -> Judge:
        plan = ReadingPlan.fast(trials=1, amplitudes=(1.0,), whiten=False)
        return Judge(Resident(text_unet(), "acme/sd"), Question(KEY, carrier_record(**changes), plan))

    def suspect(self, folder: Path, name: str, outside: bool = False, **fields: object) -> SuspectFiles:
        file = f"{name}.safetensors"
        row = replace(BLANK, repo=f"u/{name}", file=file, kind="lora", **fields)
        reason = NotTestableError("an adapter that names no base") if outside else None
        return SuspectFiles(Candidate("lora", file, None, ()), folder, row, reason)

    def test_comes_first_and_stands_beside_the_mark(self, folder):
        judge = self.judge()
        own, clean = (judge.read(self.suspect(folder, name)) for name in ("own", "clean"))
        assert own.verdict == clean.verdict == "not_verified" and own.denoiser_evals > 0
        assert own.lineage_reading["verdict"] == "verified" and own.lineage_reading["log10_p"] < -20
        assert own.lineage_reading["sites"] == 24 and own.lineage_reading["share"] == 1.0
        assert clean.lineage_reading["verdict"] == "not_verified" and clean.lineage_reading["log10_p"] > -3
        assert 0 < own.seconds["lineage"] < own.seconds["read"]

    def test_the_sites_are_the_records_and_commitments_are_paid_for(self, folder):
        judge = self.judge(lineage=carried(0.25, text_unet(up_block_types=("UpBlock2D", "UpBlock2D"))))
        one = judge.read(self.suspect(folder, "own", outside=True)).lineage_reading
        assert 0 < one["sites"] < 24 and one["share"] == 1.0
        question = replace(judge.question, plan=replace(judge.question.plan, commitments=10))
        ten = Judge(judge.base, question).read(self.suspect(folder, "own", outside=True)).lineage_reading
        assert ten["log10_p"] == pytest.approx(one["log10_p"] + 1)

    def test_a_whole_model_is_asked_by_its_weights(self, folder):
        carrying = text_unet()
        carry(carrying)
        carrying.save_pretrained(folder / "model")
        row = replace(BLANK, repo="u/model", file="model", kind="folder")
        found = self.judge().read(SuspectFiles(Candidate("folder", "model", None, ()), folder, row))
        assert found.verdict == "not_verified" and found.lineage_reading["kind"] == "weights"
        assert found.lineage_reading["verdict"] == "verified" and found.lineage_reading["log10_p"] < -100
        assert (
            self.judge(lineage=None)
            .read(SuspectFiles(Candidate("folder", "model", None, ()), folder, row))
            .lineage_reading
            is None
        )

    def test_of_a_carrier_alone_nothing_is_read_on_the_base(self):
        assert self.judge().question.reads_base and self.judge(lineage=None).question.reads_base
        assert not self.judge(lineage=carried(0.25, text_unet(), only=True)).question.reads_base

    def test_a_wrong_key_reads_nothing(self, folder):
        judge = self.judge()
        judge.question = replace(judge.question, key=KEY.child("wrong"))
        assert judge.read(self.suspect(folder, "own")).lineage_reading["log10_p"] > -3

    def test_outside_the_tree_the_file_alone_is_read(self, folder):
        row = self.judge().read(self.suspect(folder, "own", outside=True))
        assert row.verdict == "not_testable" and row.reason == "an adapter that names no base" and row.settled
        assert row.lineage_reading["verdict"] == "verified" and row.denoiser_evals == 0 and row.log10_p is None

    def test_what_cannot_be_told_says_why(self, folder):
        judge = self.judge()
        keys, cut = (judge.read(self.suspect(folder, name)) for name in ("keys", "cut"))
        assert keys.verdict == "not_verified" and "carrier sites" in keys.lineage_reading["reason"]
        assert cut.verdict == "not_testable" and cut.lineage_reading["reason"] == cut.reason
        assert cut.lineage_reading["log10_p"] is None

    def test_a_mark_without_a_carrier_asks_nothing(self, folder):
        judge = self.judge(lineage=None)
        row = judge.read(self.suspect(folder, "own"))
        assert row.lineage_reading is None and "lineage" not in row.seconds and row.verdict == "not_verified"
        assert judge.read(self.suspect(folder, "cut")).lineage_reading is None

    def test_copies_share_what_was_asked_and_no_more(self, folder):
        judge = self.judge()
        first = judge.read(self.suspect(folder, "own", outside=True, file_key=("f",)))
        inside = replace(first, repo="u/inside", lineage_reading=None)
        assert judge.knows(inside, outside=True) and not judge.knows(inside)
        second = judge.read(self.suspect(folder, "own", file_key=("f",)))  # the same, declared for the base
        assert second.verdict == "not_verified" and second.lineage_reading == first.lineage_reading
        assert judge.knows(inside)
        nowhere = self.suspect(Path("/nowhere"), "copy", file_key=("f",))
        for outside in (None, NotTestableError("x")):
            copy = judge.read(nowhere._replace(outside=outside))
            assert copy.lineage_reading == first.lineage_reading and copy.copy_of == first.label
            assert copy.log10_p == (second.log10_p if outside is None else None)

    def test_a_reading_of_a_version_that_asked_none_is_no_answer(self):
        judge = self.judge()
        judge.remember(replace(BLANK, kind="lora", log10_p=-9.0, digest="t", file_key=("f",)))
        assert not judge.knows(replace(BLANK, kind="lora", file_key=("f",)))
        assert judge.knows(replace(BLANK, kind="folder", file_key=("f",)))


def _base(sha256: str) -> Resident:
    base = Resident.__new__(Resident)
    base.sha256 = sha256
    return base
