"""Rows, log and report of a scan, without a Hub."""

import csv
import io
import json
import math
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from aiao_diffusers.scanning.log import ScanRow
from aiao_diffusers.scanning.report import ScanReport


HOSTILE = '=cmd|"/C calc"!A1 <script>alert(1)</script> | x `y` [z](http://evil)'


def row(name: str, log10_p: float | None = None, **fields: object) -> ScanRow:
    verdict = "not_testable" if log10_p is None else "verified" if log10_p <= -6 else "not_verified"
    blank = ScanRow(f"u/{name}", "c" * 40, "w.safetensors", "adapter", ("acme/sd",), "tree", verdict, log10_p=log10_p)
    return replace(blank, **fields)  # type: ignore[arg-type]


def report(*rows: ScanRow, alpha: float = 1e-6) -> ScanReport:
    return ScanReport("acme/sd", "d" * 40, "Acme", "e" * 64, alpha, -100.0, rows)


class TestReport:
    def test_a_lone_verdict_may_fall_to_the_correction(self) -> None:
        weak = [row(f"weak-{i}", -6.5) for i in range(9)]
        assert report(weak[0]).counts["verified"] == 1 and report(weak[0]).proves(weak[0]) == "descent"
        found = report(*weak, row("strong", -30.0), row("broken"))
        assert found.counts == {"verified": 1, "not_verified": 9, "not_testable": 1}
        assert found.proves(weak[0]) == "nothing" and found.to_dict()["rows"][0]["proves"] == "descent"
        assert [r.repo for r in found.sorted_rows][:1] == ["u/strong"] and found.sorted_rows[-1].repo == "u/broken"

    def test_copies_are_one_test(self) -> None:
        original = row("a", -6.5, digest="same")
        copies = [row(f"b{i}", -6.5, digest="same", copy_of=original.label) for i in range(50)]
        found = report(original, *copies)
        assert found.counts["verified"] == 51 and set(found.adjusted.values()) == {-6.5}

    def test_words_of_strangers_stay_words(self) -> None:
        found = report(row("x", reason=HOSTILE), row("y", -7.0, warnings=(HOSTILE,)))
        line = next(text for text in found.to_markdown().splitlines() if "u/x" in text)
        assert (
            line.replace("\\|", "").count("|") == len(found.columns) + 1 and "<script" not in line and "\\[z]" in line
        )
        tags: list[str] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
        parser.feed(found.to_html())
        assert "script" not in tags and tags.count("td") == 2 * len(found.columns)
        table = list(csv.reader(io.StringIO(found.to_csv())))
        assert [len(cells) for cells in table] == [len(found.columns)] * 3
        assert table[2][-1].startswith("'=") and table[1][3] == "-7.0"

    def test_json_round_trip(self) -> None:
        fields = report(row("x", -7.0, file_key=("a", "b"), seconds={"read": 1.0})).to_dict()
        assert fields["rows"][0]["log10_p_holm"] == -7.0 and fields["correction"] == "Holm"
        kept = {k: v for k, v in fields["rows"][0].items() if k not in ("log10_p_holm", "proves")}
        assert ScanRow.of(kept) == row("x", -7.0, file_key=("a", "b"), seconds={"read": 1.0})
        assert "lineage_counts" not in fields and fields["rows"][0]["lineage_reading"] is None


def traced(name: str, log10_p: float | None, mark: float | None = None, **fields: object) -> ScanRow:
    reason = None if log10_p is not None else "no carrier site"
    told = {"verdict": "not_testable", "log10_p": log10_p, "reason": reason, "sites": 3, "share": 0.5}
    return row(name, mark, kind="lora", lineage_reading=told, **fields)


class TestLineage:
    def test_stands_beside_the_mark_and_is_corrected_with_it(self) -> None:
        found = report(traced("both", -20.0, -30.0), traced("outside", -6.4), traced("none", None, -7.0))
        # four tests: the smallest p counts four times, the next three times, ...
        expected = {"u/both/w.safetensors": -20.0 + math.log10(3), "u/outside/w.safetensors": -6.4}
        assert found.lineage_adjusted == pytest.approx(expected)
        assert found.adjusted["u/none/w.safetensors"] == pytest.approx(-7.0 + math.log10(2))
        by_name = {r.repo: (found.verdict_of(r), found.lineage_verdict_of(r), found.proves(r)) for r in found.rows}
        assert by_name == {
            "u/both": ("verified", "verified", "carries"),
            "u/outside": ("not_testable", "verified", "nothing"),
            "u/none": ("verified", "not_testable", "carries"),
        }
        assert found.counts == {"verified": 2, "not_verified": 0, "not_testable": 1}
        assert found.lineage_counts == {"verified": 2, "not_verified": 0, "not_testable": 1}
        assert [r.repo for r in found.sorted_rows] == ["u/both", "u/none", "u/outside"]

    def test_of_a_carrier_alone_no_row_claims_more_than_its_weights_show(self) -> None:
        found = replace(report(row("model", -30.0, kind="folder"), traced("lora", -20.0)), carrier_alone=True)
        assert found.proves(found.rows[0]) == "lineage in weights" and found.proves(found.rows[1]) == "nothing"
        for page in (found.to_markdown(), unescape(found.to_html())):
            assert "descent" not in page and "what runs" not in page and "marked weights" not in page
            assert "or was made with knowledge of it" in page and "neither with a forward" in page
        assert found.to_dict()["carrier_alone"] and "descent" not in json.dumps(found.to_dict())

    def test_a_lone_verdict_may_fall_to_the_tests_of_the_other_question(self) -> None:
        weak = traced("weak", -6.2)
        assert report(weak).lineage_verdict_of(weak) == "verified"
        assert report(weak, row("x", -0.1)).lineage_verdict_of(weak) == "not_verified"

    def test_copies_are_one_test(self) -> None:
        copies = [traced(f"b{i}", -6.5, digest="same") for i in range(50)]
        assert set(report(*copies).lineage_adjusted.values()) == {-6.5}

    def test_every_page_says_which_question_a_column_answers(self) -> None:
        found = report(traced("both", -20.0, -30.0), row("tuned", -9.0), traced("none", None, -7.0))
        assert found.columns[9:12] == ("lineage", "lineage log10 p", "lineage Holm")
        for page in (found.to_markdown(), found.to_html()):
            assert "Two questions" in page and "1 verified, 0 not_verified, 1 not_testable" in page and "-19.5" in page
        table = list(csv.reader(io.StringIO(found.to_csv())))
        assert table[1][9:12] == ["verified", "-20.0", "-19.5"] and table[2][9:12] == ["", "", ""]
        assert "lineage: no carrier site" in table[3][-1]
        told = found.to_dict()
        assert told["lineage_counts"] == found.lineage_counts and "_family" not in told
        assert (
            told["rows"][0]["lineage_reading"]["verdict"] == "verified" and told["rows"][1]["lineage_reading"] is None
        )
        plain = report(row("tuned", -9.0))
        assert "lineage" not in plain.columns and "Two questions" not in plain.to_markdown() and not plain.asks_lineage
