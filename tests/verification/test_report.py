"""The report for people: what it draws is what was read, and a page carries everything within itself."""

import json

from _reports import FIELDS, REPORT


class TestPage:
    def test_markdown_has_no_long_lists(self):
        text = REPORT.to_markdown()
        assert "median_log10_p -0.30" in text and "104" not in text

    def test_json_keeps_everything(self):
        assert json.loads(json.dumps(REPORT.to_dict()))["controls"] == FIELDS["controls"]
