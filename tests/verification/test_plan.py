"""The list of looks is fixed by what the verifier chose and offered; seeing decides only when to stop."""

import math

import pytest

from aiao_diffusers.errors import ConfigError
from aiao_diffusers.verification.plan import Futility, ReadingPlan


def labels(plan: ReadingPlan) -> list[str]:
    return [look.label for look in plan.looks]


PLAIN = ["amplitude x1"] * 4 + ["amplitude x1, ranks", "amplitude x1, whitened"]
LOUDER = [label for x in ("x2", "x4") for label in ["amplitude " + x] * 4 + [f"amplitude {x}, ranks"]]


class TestOrder:
    def test_of_the_default(self):
        plan = ReadingPlan.thorough()
        assert labels(plan) == PLAIN + LOUDER
        assert [look.trials for look in plan.looks] == [1, 2, 4, 8, 8, 8] + [1, 2, 4, 8, 8] * 2
        assert [look.statistic for look in plan.looks[:6]] == ["hits"] * 4 + ["ranks", "whitened"]

    def test_offers_put_their_looks_in_their_places(self):
        beyond = ["beyond the twin x1, ranks", "beyond the twin x1, whitened"]
        assert labels(ReadingPlan(clean_twin=True)) == PLAIN + beyond + LOUDER

        def through(view: str) -> list[str]:
            first = [f"{view} x1", f"{view} x1, ranks", f"{view} x1, whitened"]
            return first + [f"{view} {x}{by}" for x in ("x2", "x4") for by in ("", ", ranks")]

        assert labels(ReadingPlan(reference=True)) == PLAIN + LOUDER + through("aligned")
        assert labels(ReadingPlan(healing=True)) == PLAIN + LOUDER + through("healed")
        everything = ReadingPlan(clean_twin=True, reference=True, healing=True)
        assert labels(everything) == PLAIN + beyond + LOUDER + [
            label for view in ("aligned", "healed", "healed, aligned") for label in through(view)
        ]

    @pytest.mark.parametrize(
        "trials, counts", [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
    )
    def test_looks_are_taken_after_one_two_four_trials_and_at_the_end(self, trials, counts):
        plan = ReadingPlan(trials=trials, amplitudes=(2.0,), whiten=False)
        assert [look.trials for look in plan.looks] == [*counts, trials]

    def test_fast_has_the_looks_of_thorough(self):
        fast, thorough = ReadingPlan.fast(), ReadingPlan.thorough()
        assert fast.looks == thorough.looks and (fast.name, thorough.name) == ("fast", "thorough")

    def test_only_offered_passes_outlive_futility(self):
        plan = ReadingPlan(clean_twin=True, reference=True, healing=True)
        assert {part.view for part in plan.passes if not part.offered} == {"plain"}

    def test_without_an_early_stop_the_first_amplitude_is_read_whole_and_louder_ones_only_where_needed(self):
        parts = ReadingPlan(early_stop=False, clean_twin=True, reference=True).passes
        assert [(part.label, part.regardless, part.whole) for part in parts[:4]] == [
            ("amplitude x1", True, True),
            ("beyond the twin x1", True, True),
            ("amplitude x2", False, True),
            ("amplitude x4", False, True),
        ]
        assert not any(part.regardless or part.whole for part in ReadingPlan(clean_twin=True, reference=True).passes)

    def test_it_is_told_as_json(self):
        told = ReadingPlan.fast(alpha=1e-3, trials=2, amplitudes=[1]).to_dict()
        assert told["name"] == "fast" and told["futility"] == {"trials": 4, "alpha": 0.05} and told["alpha"] == 1e-3
        assert told["looks"] == ["amplitude x1"] * 2 + ["amplitude x1, ranks", "amplitude x1, whitened"]


class TestFutility:
    def test_one_small_p_of_several_keeps_hope(self):
        rule = Futility(alpha=0.05)
        assert rule.is_hopeless([math.log10(0.06), -0.3])
        assert not rule.is_hopeless([-0.3, math.log10(0.04)]) and not rule.is_hopeless([math.log10(0.05)])

    @pytest.mark.parametrize("fields", [{"trials": 0}, {"alpha": 0.0}, {"alpha": 1.0}])
    def test_bad_values(self, fields):
        with pytest.raises(ConfigError, match="futility"):
            Futility(**fields)


@pytest.mark.parametrize(
    "fields, word",
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"trials": 0}, "trials"),
        ({"amplitudes": ()}, "amplitudes"),
        ({"amplitudes": (1.0, -1.0)}, "amplitudes"),
        ({"amplitudes": (float("inf"),)}, "amplitudes"),
    ],
)
def test_bad_values(fields, word):
    with pytest.raises(ConfigError, match=word):
        ReadingPlan(**fields)
