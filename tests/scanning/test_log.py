"""The log of a scan goes on where it was, refuses another's, and a folder holds one scan at a time."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aiao_diffusers import WatermarkKey, scan
from aiao_diffusers.errors import ConfigError, OutputExistsError, ResultsError
from aiao_diffusers.files.jsonl import lock_folder
from aiao_diffusers.scanning.log import ScanLog, ScanRow


HEADER = {"base": "acme/sd", "alpha": 1e-6}
ROW = ScanRow("u/a", "1", "w.safetensors", "adapter", ("acme/sd",), "tree", "not_verified", log10_p=-0.5)


def row(name: str, log10_p: float | None = None, **fields: object) -> ScanRow:
    verdict = "not_testable" if log10_p is None else "verified" if log10_p <= -6 else "not_verified"
    blank = ScanRow(f"u/{name}", "c" * 40, "w.safetensors", "adapter", ("acme/sd",), "tree", verdict, log10_p=log10_p)
    return replace(blank, **fields)  # type: ignore[arg-type]


class TestLog:
    def test_goes_on_where_it_was(self, tmp_path: Path) -> None:
        path, header = tmp_path / "out" / "scan.jsonl", {"base": "acme/sd", "alpha": 1e-6}
        log = ScanLog(path, header)
        log.write("u/a", "1", (row("a", -7.0), row("a", file="other")))
        log.write("u/b", "1", (row("b", settled=False),))
        before = path.read_bytes()
        path.write_bytes(before + b'{"repo": "u/c", "commit": "1", "rows": [')  # torn by a kill
        again = ScanLog(path, header)
        assert again.settled("u/a", "1") and not again.settled("u/a", "2") and not again.settled("u/a", None)
        assert not again.settled("u/b", "1") and not again.settled("u/c", "1")
        assert [r.file for r in again.rows()] == ["w.safetensors", "other", "w.safetensors"]
        again.write("u/b", "2", (row("b", -8.0),))
        assert path.read_bytes().startswith(before)
        last = ScanLog(path, header)
        assert last.settled("u/b", "2") and [r.log10_p for r in last.rows()] == [-7.0, None, -8.0]
        assert all(json.loads(line) for line in path.read_text().splitlines())

    def test_adapters_of_a_version_that_asked_no_lineage_are_asked_again(self, tmp_path: Path) -> None:
        path, header = tmp_path / "scan.jsonl", {"base": "acme/sd", "alpha": 1e-6}
        log = ScanLog(path, header)
        told = {"verdict": "not_verified", "log10_p": -0.5}
        log.write("u/old", "1", (row("old", -7.0, kind="lora"),))
        log.write("u/tuned", "1", (row("tuned", -7.0, kind="folder"),))
        log.write("u/new", "1", (row("new", -7.0, kind="lora", lineage_reading=told),))
        lines = path.read_text().splitlines()  # as that version wrote them
        path.write_text("".join(line.replace(', "lineage_reading": null', "") + "\n" for line in lines))
        assert [name for name in ("old", "tuned", "new") if ScanLog(path, header).settled(f"u/{name}", "1")] == [
            "old",
            "tuned",
            "new",
        ]
        again = ScanLog(path, header, asks_lineage=True)
        assert [name for name in ("old", "tuned", "new") if again.settled(f"u/{name}", "1")] == ["tuned", "new"]
        assert again.rows()[2].lineage_reading == told

    def test_refuses_another_scan_and_another_file(self, tmp_path: Path) -> None:
        path = tmp_path / "scan.jsonl"
        ScanLog(path, {"base": "acme/sd"})
        with pytest.raises(OutputExistsError, match="another scan"):
            ScanLog(path, {"base": "acme/other"})
        path.write_text("precious notes\n")
        with pytest.raises(ConfigError, match="no scan log"):
            ScanLog(path, {"base": "acme/sd"})
        assert path.read_text() == "precious notes\n"


def test_a_second_scan_in_a_folder_is_refused_before_it_touches_anything(tmp_path):
    """The first one stands for any scan: a process that holds the folder, with a download in it and a log."""
    folder = tmp_path / "out"
    program = f"""
import sys
from pathlib import Path
from aiao_diffusers.files.jsonl import lock_folder
from aiao_diffusers.scanning.log import ScanLog, ScanRow
folder = Path({str(folder)!r})
with lock_folder(folder):
    log = ScanLog(folder / "scan.jsonl", {HEADER!r})
    log.write("u/a", "1", ({ROW!r},))
    (folder / ".aiao-downloads-first").mkdir()
    (folder / ".aiao-downloads-first" / "w.safetensors").write_bytes(b"half")
    print("runs", flush=True)
    sys.stdin.read()
"""
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "runs\n"
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(ResultsError, match=r"out' is in use by another run: wait for it or choose another folder"):
            scan("acme/sd", WatermarkKey(bytes(32), "x"), output=folder, api=object())  # no Hub is asked either
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        first.send_signal(signal.SIGKILL)
        first.wait()
    with lock_folder(folder):  # it went with the process, and the log goes on
        log = ScanLog(folder / "scan.jsonl", HEADER)
        assert log.settled("u/a", "1") and log.rows() == (ROW,)
        log.write("u/b", "1", ())
    assert [json.loads(line).get("repo") for line in (folder / "scan.jsonl").open()] == [None, "u/a", "u/b"]


def test_a_torn_line_within_is_passed_over(tmp_path):
    """Versions before the lock left torn lines where they were and went on after them."""
    path = tmp_path / "scan.jsonl"
    ScanLog(path, HEADER).write("u/a", "1", (ROW,))
    with path.open("ab") as file:
        file.write(b'{"repo": "u/torn", "comm\n')
    ScanLog(path, HEADER).write("u/b", "1", ())
    assert sorted(ScanLog(path, HEADER).repos) == ["u/a", "u/b"]
