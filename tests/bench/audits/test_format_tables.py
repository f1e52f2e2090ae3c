"""The table of formats and the page of supported files, and that the committed ones are those of the committed result."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from _kind import extra

from aiao_diffusers.bench.audits import format_files
from aiao_diffusers.bench.audits.format_tables import Row, memory_table, page, read, table
from aiao_diffusers.errors import ResultsError


DOCS = Path(__file__).parents[3] / "docs"
READ = Row(
    *("kohya", "Adapters", "lora", True, None, 91, 2.0, "patched", 1.5e-6),
    *("verified", -96.4, "not_verified", -0.8, 0.5, 5.2, 0.1, True),
)
REFUSED = replace(
    READ, format="IP-Adapter", group=format_files.REFUSED, kind="ip_adapter", loads=False, refusal="it adds | layers", modules=None,
    oracle=None, oracle_error=None, marked="not_testable", marked_log10_p=None, clean="not_testable", clean_log10_p=None,
)  # fmt: skip


def test_a_table_of_all_columns():
    text = table([READ, REFUSED])
    assert (
        "| kohya | lora | yes | 91 | patched | 1.5e-06 | verified (-96.4) | not_verified (-0.8) | 0.50 | 5 |" in text
    )
    assert text.count("\n") == 4 and "| IP-Adapter | ip_adapter | no |" in text


def test_a_page_says_what_is_read_and_why_the_rest_is_not():
    text = page([READ, REFUSED])
    read_part, refused = text.split(f"## {format_files.REFUSED}")
    assert "## Adapters\n" in read_part and "| kohya | lora | 1.5e-06 | patched | verified (-96.4) |" in read_part
    assert r"| IP-Adapter | ip_adapter | not_testable | it adds \| layers |" in refused
    assert "2 of 2 rows are as expected." in text
    assert "1 of 2 rows are as expected: not kohya." in page([replace(READ, as_expected=False), REFUSED])


def test_rows_come_back_from_a_file_and_nothing_else_does(tmp_path):
    file = tmp_path / "formats.json"
    file.write_text(json.dumps([asdict(READ), asdict(REFUSED)]))
    assert read(file) == [READ, REFUSED]
    for content in ("[1]", "{", '[{"format": "x"}]', "3"):
        file.write_text(content)
        with pytest.raises(ResultsError, match="formats.json"):
            read(file)
    with pytest.raises(ResultsError, match="nowhere"):
        read(tmp_path / "nowhere.json")


def test_memory():
    assert "| GGUF | 622 | 1.08 | 2.0 |" in memory_table([("GGUF", 622.0, 1.08, 2.0), ("x", 1.0, None, 1.0)])


class TestCommitted:
    """Of `docs/formats.json`, which `aiao bench formats -o docs` writes."""

    def test_documents_are_what_the_command_prints(self):
        rows = read(DOCS / "formats.json")
        assert (DOCS / "supported_files.md").read_text() == page(rows)
        assert table(rows) in (DOCS / "formats.md").read_text()
        assert f"{len(rows)} of {len(rows)} rows are as expected" in (DOCS / "formats.md").read_text()

    def test_nothing_clean_is_verified_and_nothing_is_misloaded(self):
        rows = read(DOCS / "formats.json")
        assert [row.format for row in rows if row.clean == "verified" or not row.as_expected] == []
        assert all(row.marked == "verified" for row in rows if row.loads)
        # A fine-tune of a few bits is off by its storage; nothing else is off by more than rounding.
        off = {row.format for row in rows if row.oracle_error is not None and row.oracle_error > 0.01}
        assert all(any(bits in name for bits in ("int8", "bfloat16", "float8", "Q8_0")) for name in off), off

    def test_every_format_of_the_code_is_measured(self):
        extra("gguf")
        rows = read(DOCS / "formats.json")
        listed = [(group, fmt.name) for group, members in format_files.groups().items() for fmt in members]
        assert [(row.group, row.format) for row in rows] == listed
