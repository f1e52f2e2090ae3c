"""The log of a scan goes on where it was, and refuses another's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aiao_diffusers.errors import ConfigError, OutputExistsError
from aiao_diffusers.scanning.log import ScanLog, ScanRow


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
