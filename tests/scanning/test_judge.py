"""Rows of suspects: refused ones with their reason, and copies that share one reading."""

from dataclasses import replace
from pathlib import Path

import pytest

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
from aiao_diffusers.scanning.judge import Judge, SuspectFiles, refuse
from aiao_diffusers.scanning.log import ScanRow
from aiao_diffusers.scanning.resident import Resident


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
        judge.base, judge.question, judge._seen = _base("b" * 64), None, {}
        return judge

    def test_what_was_read_is_known_by_its_files_and_by_its_tensors(self):
        judge, read = self.judge(), replace(BLANK, log10_p=-9.0, digest="t", file_key=("f",), verdict="verified")
        judge.remember(read)
        assert judge.knows(("f",)) and not judge.knows(("g",)) and not judge.knows(())
        judge.remember(replace(BLANK, file_key=("h",)))  # no reading, nothing to share
        judge.remember(replace(read, file_key=("i",), digest="i", copy_of="u/y"))
        assert not judge.knows(("h",)) and not judge.knows(("i",))

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


def _base(sha256: str) -> Resident:
    base = Resident.__new__(Resident)
    base.sha256 = sha256
    return base
