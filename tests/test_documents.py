"""Documents hold together: links lead to files and headings that exist, and every kept result stands in a table."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "examples/emoji_diffusion/README.md"])


def anchors(text: str) -> set[str]:
    """Of the headings outside fenced blocks, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def test_every_kept_result_stands_in_a_table():
    marks = [
        mark for path in ROOT.glob("docs/*.md") for mark in re.findall(r"<!-- bench: (.+?) -->", path.read_text())
    ]
    shown = {
        file
        for mark in marks
        for kind, *files in [mark.split()]
        if kind in ("verdicts", "looks", "compare")
        for file in files
    }
    assert {f"robustness/{path.name}" for path in ROOT.glob("docs/robustness/*.jsonl")} - shown == set()
