"""Rows, log and report of a scan, without a Hub."""

import csv
import io
from dataclasses import replace
from html.parser import HTMLParser

from aiao_diffusers.scanning.log import ScanRow
from aiao_diffusers.scanning.report import COLUMNS, ScanReport


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
        assert line.replace("\\|", "").count("|") == len(COLUMNS) + 1 and "<script" not in line and "\\[z]" in line
        tags: list[str] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
        parser.feed(found.to_html())
        assert "script" not in tags and tags.count("td") == 2 * len(COLUMNS)
        table = list(csv.reader(io.StringIO(found.to_csv())))
        assert [len(cells) for cells in table] == [len(COLUMNS)] * 3
        assert table[2][-1].startswith("'=") and table[1][3] == "-7.0"

    def test_json_round_trip(self) -> None:
        fields = report(row("x", -7.0, file_key=("a", "b"), seconds={"read": 1.0})).to_dict()
        assert fields["rows"][0]["log10_p_holm"] == -7.0 and fields["correction"] == "Holm"
        kept = {k: v for k, v in fields["rows"][0].items() if k not in ("log10_p_holm", "proves")}
        assert ScanRow.of(kept) == row("x", -7.0, file_key=("a", "b"), seconds={"read": 1.0})
