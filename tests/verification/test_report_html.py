"""The page for people carries everything within itself."""

import re
from html import unescape

from _reports import NOT_TESTABLE, REPORT, SITES

from aiao_diffusers.verification.claims import PROVES, UNPROVEN


class TestPage:
    def test_is_self_contained(self):
        page = REPORT.to_html()
        assert page.startswith("<!doctype html>") and page.rstrip().endswith("</html>")
        assert page.count("data:image/png;base64,") == page.count("<img ") == 4
        assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|<script|<link|@import|url\(", page)

    def test_names_what_was_compared_and_what_follows(self):
        page = REPORT.to_html()
        for value in ("aa" * 32, "bb" * 32, "cc" * 32, "dd" * 32, "-20.5", "-54.0", SITES[1].name):
            assert value in page
        assert PROVES["descent"] in unescape(page) and UNPROVEN["descent"] in unescape(page)

    def test_what_a_suspect_brings_is_escaped(self):
        page = REPORT.to_html()
        assert "<img src=x" not in page and "&lt;img src=x" in page and "<b>bold" not in page

    def test_without_a_reading(self):
        page = NOT_TESTABLE.to_html()
        assert "&lt;NaN&gt;" in page and "<img" not in page and "None" not in page
        assert PROVES["nothing"] not in page  # nothing was looked for
