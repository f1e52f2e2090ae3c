"""What the fast plan loses and saves, from rows whose numbers are known."""

import pytest

from aiao_diffusers.bench.audits.fast_plan import Row, attacks, markdown, summary, to_dicts


def rows() -> list[Row]:
    sound = Row("noise", 2, [-9.0, -8.0], [-9.0, -8.0], 2, 2, [2, 2], [8, 8, 8, 8], ["not_verified"] * 4)
    lost = Row("merge", 2, [-7.0, -6.5], [-7.0, -0.2], 2, 1, [2, 8], [8, 8, 8, 128], ["not_verified"] * 4)
    return [sound, lost]


def test_what_is_lost_and_what_a_negative_costs():
    found = summary(rows())
    assert (found["marked"], found["thorough_verified"], found["fast_verified"]) == (4, 4, 3)
    assert found["lost"] == ["merge: 1 of 2"]
    assert (found["negatives"], found["within_8"], found["median_evals"]) == (8, 7, 8.0)
    assert found["mean_evals"] == pytest.approx((7 * 8 + 128) / 8) and found["false"] == 0
    low, high = found["within_8_ci"]
    assert low < 7 / 8 < high


def test_a_false_verdict_is_counted():
    wrong = rows()
    wrong[0].control_verdicts[1] = "verified"
    assert summary(wrong)["false"] == 1 and "False verdicts: 1" in markdown(wrong)


def test_the_table_shows_where_plans_differ():
    text = markdown(rows())
    assert "| merge | 2 | 2, -7.0 to -6.5 | 1, -7.0 to -0.2 |" in text and "| noise |" not in text
    assert "only the thorough plan reads: merge: 1 of 2" in text and "7 of 8 cost at most 8" in text
    assert to_dicts(rows())[1]["fast_evals"] == [2, 8]


def test_every_attack_of_the_suites_once():
    found = list(attacks(["smoke", "smoke"]))
    assert len(found) == len(list(attacks(["smoke"]))) == len({str(asked) for asked in found}) > 3
    assert ("none", {}) in found
