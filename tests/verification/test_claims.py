"""What a verdict proves and what it does not: a sentence for each, whatever `proves` may be."""

import pytest

from aiao_diffusers.verification.claims import LINEAGE, NO_LINEAGE, PROVES, UNPROVEN, WEIGHTS


def test_both_speak_of_the_same_claims():
    assert list(PROVES) and PROVES.keys() == UNPROVEN.keys() == {"descent", "carries", LINEAGE, WEIGHTS, "nothing"}


@pytest.mark.parametrize("claim", PROVES)
def test_each_is_whole_and_says_its_own(claim):
    for told in (PROVES, UNPROVEN):
        assert told[claim].endswith(".") and list(told.values()).count(told[claim]) == 1
    assert UNPROVEN[claim].startswith("Not ")


def test_where_lineage_alone_was_asked_nothing_found_has_its_own_words():
    assert NO_LINEAGE.keys() == {LINEAGE, WEIGHTS} and all(
        told.startswith("Nothing: ") for told in NO_LINEAGE.values()
    )


def test_what_a_file_shows_is_not_what_runs():
    assert (
        "carries the mark, or made with knowledge of it" in PROVES[LINEAGE] and "Whoever runs" not in PROVES[LINEAGE]
    )
    assert "not whether whoever runs" in UNPROVEN[LINEAGE].lower()


def test_nothing_found_claims_nothing():
    assert "no proof of independence" in PROVES["nothing"] and "descends" not in PROVES["nothing"]
