"""The page for people carries everything within itself."""

import re
from html import unescape

from aiao_diffusers.stats.hits import SiteTest, site_log10_p
from aiao_diffusers.verification.claims import PROVES, UNPROVEN
from aiao_diffusers.verification.report import VerificationReport


SITES = tuple(SiteTest(f"up_blocks.{i}.attn1", 64, h, site_log10_p(64, 32, h)) for i, h in enumerate((64, 50, 40)))


FIELDS = {
    "verdict": "verified",
    "suspect": "<img src=x onerror=alert(1)>",
    "alpha": 1e-6,
    "log10_p": -20.5,
    "log10_p_floor": -54.0,
    "bit_accuracy": 154 / 192,
    "verification_rate": 0.75,
    "verification_rate_ci": (0.3, 0.9),
    "trials": 4,
    "denoiser_evals": 8,
    "sites": SITES,
    "proves": "descent",
    "controls": {"wrong_response": {"n": 4, "median_log10_p": -0.3, "hits": [90, 96, 98, 104]}},
    "warnings": ("a <b>bold</b> warning",),
    "looks": ({"label": "amplitude x1", "trials": 1, "log10_p": -20.8, "log10_p_adjusted": -20.5},),
    "hashes": {"suspect": "aa" * 32, "base": None, "marked": "bb" * 32, "record": "cc" * 32, "commitment": "dd" * 32},
    "subpaths": (
        {"in": ["a", "b"], "bits": {s.name: 1.0 for s in SITES}},
        {"in": ["b"], "bits": {SITES[2].name: 0.5}},
    ),
    "seed": 0,
}


REPORT = VerificationReport(**FIELDS)


NOT_TESTABLE = VerificationReport("not_testable", "x", 1e-6, reason="the file holds <NaN>")


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
