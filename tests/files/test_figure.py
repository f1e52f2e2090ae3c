"""Plots need matplotlib; without it the error names the extra."""

import sys

import pytest
from _reports import REPORT

from aiao_diffusers.errors import MissingExtraError


class TestFigure:
    def test_missing_matplotlib_names_the_fix(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        for ask in (REPORT.plot, REPORT.to_html):
            with pytest.raises(MissingExtraError, match=r"aiao_diffusers\[plots\]"):
                ask()
        assert REPORT.to_markdown() and REPORT.to_dict()
