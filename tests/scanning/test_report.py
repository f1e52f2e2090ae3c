"""Rows, log and report of a scan, without a Hub."""

import csv
import io
import itertools
import json
import math
import random
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from aiao_diffusers.cli.scan import _Live
from aiao_diffusers.errors import ConfigError, OutputExistsError
from aiao_diffusers.scanning.log import ScanLog, ScanRow
from aiao_diffusers.scanning.report import COLUMNS, ScanReport
from aiao_diffusers.stats.multiple import holm


HOSTILE = '=cmd|"/C calc"!A1 <script>alert(1)</script> | x `y` [z](http://evil)'


def row(name: str, log10_p: float | None = None, **fields: object) -> ScanRow:
    verdict = "not_testable" if log10_p is None else "verified" if log10_p <= -6 else "not_verified"
    blank = ScanRow(f"u/{name}", "c" * 40, "w.safetensors", "adapter", ("acme/sd",), "tree", verdict, log10_p=log10_p)
    return replace(blank, **fields)  # type: ignore[arg-type]


def report(*rows: ScanRow, alpha: float = 1e-6) -> ScanReport:
    return ScanReport("acme/sd", "d" * 40, "Acme", "e" * 64, alpha, -100.0, rows)


class TestHolm:
    def test_is_the_closure_of_bonferroni(self) -> None:
        """By definition: an adjusted p is the largest Bonferroni p of any set of hypotheses that holds it."""
        generator = random.Random(0)
        for size in range(1, 8):
            p = [10 ** generator.uniform(-4, 0) for _ in range(size)]
            p[-1] = p[0]  # a tie
            for i, found in enumerate(holm([math.log10(x) for x in p])):
                sets = (s for n in range(1, size + 1) for s in itertools.combinations(range(size), n) if i in s)
                assert math.isclose(10**found, max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets))

    def test_family_wise_error(self) -> None:
        """Uniform p of the null, fully dependent or not: one false acceptance in at most a share alpha of the scans."""
        generator = random.Random(1)
        scans, alpha = 4000, 0.05
        for dependent in (False, True):
            wrong = 0
            for _ in range(scans):
                shared = generator.random()
                p = [shared if dependent else generator.random() for _ in range(20)]
                wrong += min(holm([math.log10(max(x, 1e-300)) for x in p])) <= math.log10(alpha)
            assert wrong / scans < alpha + 3 * math.sqrt(alpha * (1 - alpha) / scans)

    def test_none_and_far_tail(self) -> None:
        assert holm([]) == []
        assert holm([-400.0, -500.0, 0.0]) == pytest.approx([-400 + math.log10(2), -500 + math.log10(3), 0.0])


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


class TestLog:
    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path, header = tmp_path / "out" / "scan.jsonl", {"base": "acme/sd", "alpha": 1e-6}
        log = ScanLog(path, header)
        log.write("u/a", "1", (row("a", -7.0), row("a", file="other")))
        log.write("u/b", "1", (row("b", settled=False),))
        log.close()
        before = path.read_bytes()
        path.write_bytes(before + b'{"repo": "u/c", "commit": "1", "rows": [')  # torn by a kill
        again = ScanLog(path, header)
        assert again.settled("u/a", "1") and not again.settled("u/a", "2") and not again.settled("u/a", None)
        assert not again.settled("u/b", "1") and not again.settled("u/c", "1")
        assert [r.file for r in again.rows()] == ["w.safetensors", "other", "w.safetensors"]
        again.write("u/b", "2", (row("b", -8.0),))
        again.close()
        assert path.read_bytes().startswith(before)
        last = ScanLog(path, header)
        assert last.settled("u/b", "2") and [r.log10_p for r in last.rows()] == [-7.0, None, -8.0]
        last.close()
        assert all(json.loads(line) for i, line in enumerate(path.read_text().splitlines()) if i != 3)

    def test_refuses_another_scan_and_another_file(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.jsonl"
        ScanLog(path, {"base": "acme/sd"}).close()
        with pytest.raises(OutputExistsError, match="another scan"):
            ScanLog(path, {"base": "acme/other"})
        path.write_text("precious notes\n")
        with pytest.raises(ConfigError, match="no scan log"):
            ScanLog(path, {"base": "acme/sd"})
        assert path.read_text() == "precious notes\n"


def test_the_live_table_shows_strangers_words_as_they_are() -> None:
    view, console = _Live("acme/sd"), Console(width=200, file=io.StringIO(), record=True)
    view.add((row("a", -7.0), row("b", reason="[red]x[/red] [link=http://evil]y[/link]")), 2, 3)
    console.print(view.table())
    text = console.export_text()
    assert "2 of 3 repositories; 1 not_testable, 1 verified" in text and "[red]x[/red]" in text
