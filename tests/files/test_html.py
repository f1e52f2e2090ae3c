"""Pages from templates: every one of them escapes what it is given and misses nothing."""

from pathlib import Path

import jinja2
import pytest
from markupsafe import Markup

import aiao_diffusers
from aiao_diffusers.files.html import render_html


HOSTILE = "</title><script>alert(1)</script>\"'&"
DEMO = {"columns": ["a"], "legend": "l", "images": "aaaa", "sections": [("one", Markup("<b>two</b>"))]}


def test_the_demo_page_escapes_and_keeps_sections():
    page = render_html("cli/demo.html.jinja", title=HOSTILE, rows=[[HOSTILE]], **DEMO)
    assert "<script" not in page and page.count("&lt;script&gt;") == 3 and "<b>two</b>" in page
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")


def test_a_value_that_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="rows"):
        render_html("cli/demo.html.jinja", title="t", **DEMO)


def test_templates_lie_beside_the_modules_that_fill_them():
    root = Path(aiao_diffusers.__file__).parent
    found = {path.relative_to(root).as_posix() for path in root.rglob("*.html.jinja")}
    assert found == {
        "cli/demo.html.jinja",
        "files/page.html.jinja",
        "scanning/report.html.jinja",
        "verification/report.html.jinja",
        "verification/section.html.jinja",
    }
    assert not any("safe" in (root / name).read_text() for name in found)  # nothing is let through unescaped
