"""The kept result prints the tables that the document shows."""

import copy
import json
from pathlib import Path

import pytest

from aiao_diffusers.bench.audits.forgery_table import load, markdown, verdicts
from aiao_diffusers.errors import ResultsError


ROOT = Path(__file__).parents[3]
KEPT = ROOT / "docs" / "forgery.json"


def test_the_document_shows_the_kept_result():
    assert markdown(load(KEPT)).strip() in (ROOT / "docs" / "verification.md").read_text()


def test_what_it_had_to_show():
    result = load(KEPT)
    assert len(result["rows"]) == 8 and verdicts(result) == 0
    for row in result["rows"]:
        law = row["aiao-2"]
        assert law["draws"] >= 100 and law["ks_p_small"] > 0.01, row["forgery"]
    assert result["late"]["aiao-2"]


def test_a_verdict_is_counted_and_told():
    result = copy.deepcopy(load(KEPT))
    result["rows"][0]["aiao-2"]["verdicts"] = 2
    assert verdicts(result) == 2 and "| 2 |" in markdown(result)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ResultsError, match=r"forgery\.json"):
        load(tmp_path / "a.json")
