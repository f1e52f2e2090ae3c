"""The outcome of a verification: what follows from it in words, and additions that leave the original alone."""

import dataclasses

import pytest
from _reports import NOT_TESTABLE, REPORT

from aiao_diffusers.verification.claims import LINEAGE, PROVES
from aiao_diffusers.verification.outcome import VerificationOutcome


def test_only_one_verdict_is_verified():
    made = {verdict: dataclasses.replace(REPORT, verdict=verdict) for verdict in ("verified", "not_verified")}
    assert made["verified"].verified and not made["not_verified"].verified and not NOT_TESTABLE.verified


def test_what_follows_in_words():
    assert REPORT.proves_in_words == PROVES["descent"]
    assert dataclasses.replace(REPORT, proves="nothing").proves_in_words == PROVES["nothing"]
    assert "could not be put" in NOT_TESTABLE.proves_in_words  # nothing was looked for, so nothing was not found
    assert REPORT.controls_in_words == {"wrong_response": "n 4, median_log10_p -0.30"}  # without the long list


def test_the_question_of_lineage_has_words_of_its_own():
    asked = dataclasses.replace(REPORT, plan={"name": LINEAGE}, proves=LINEAGE)
    assert asked.asks_lineage and not REPORT.asks_lineage and asked.proves_in_words == PROVES[LINEAGE]
    found_nothing = dataclasses.replace(asked, verdict="not_verified", proves="nothing").proves_in_words
    assert found_nothing.startswith("Nothing") and "trained" in found_nothing
    unread = dataclasses.replace(asked, verdict="not_testable", proves="nothing").proves_in_words
    assert "could not be put" in unread


def test_a_control_and_a_warning_are_added_to_a_copy():
    more = REPORT.with_control("another", NOT_TESTABLE).with_warning("beware")
    assert more.controls["another"] == {"verdict": "not_testable", "log10_p": None}
    assert set(more.controls) == {"wrong_response", "another"} and more.warnings == (*REPORT.warnings, "beware")
    assert type(more) is type(REPORT) and "another" not in REPORT.controls and "beware" not in REPORT.warnings
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.verdict = "not_verified"


def test_where_suspect_and_base_came_from():
    source = {
        "suspect": {"repo": "u/x", "commit": "c" * 40},
        "base": {"repo": "a/b", "commit": "d" * 40, "declared_by": "model card", "matches_record": False},
        "copy": {"matches_record": True, "from_cache_alone": True},
    }
    told = VerificationOutcome("verified", "x", 1e-6, source=source).source_in_words
    assert told["suspect"] == f"repository u/x at commit {'c' * 40}"
    assert "self-declared by the suspect's model card" in told["base"]
    assert "not those of the record's marked model" in told["base"]
    assert "are those of the record's" in told["copy"] and "the Hub was away" in told["copy"]
