"""What a report draws is what was read."""

from itertools import combinations
from math import comb

import numpy as np

from aiao_diffusers.stats.hits import SiteTest, site_log10_p
from aiao_diffusers.verification.plots import figure, null_law, panels
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


class TestPlots:
    def test_null_law_by_enumeration(self):
        def hits(width):
            mine = set(range(width // 2))
            for other in combinations(range(width), width // 2):
                yield width - 2 * (width // 2) + 2 * len(mine & set(other))

        pairs = [a + b for a in hits(4) for b in hits(6)]
        law = null_law([4, 6])
        assert len(pairs) == comb(4, 2) * comb(6, 3) and len(law) == 6
        assert np.allclose(law, [pairs.count(2 * j) / len(pairs) for j in range(6)])

    def test_bars_are_the_hits(self):
        axes = panels(REPORT)["sites"].axes[0]
        assert [bar.get_width() for bar in axes.patches] == [s.hits / s.channels for s in SITES]

    def test_heat_map_averages_over_the_trials_that_armed_a_site(self):
        grid = panels(REPORT)["subpaths"].axes[0].images[0].get_array()
        assert grid.shape == (2, 3)
        assert grid[0].tolist() == [1, 1, 1] and grid[1].tolist() == [1, 1, 0.75]

    def test_observed_value_is_marked(self):
        axes = panels(REPORT)["null"].axes[0]
        assert any(np.allclose(line.get_xdata(), REPORT.bit_accuracy) for line in axes.lines)

    def test_whole_figure(self):
        assert len(figure(REPORT).axes) == 5  # four panels and a colour bar
        assert figure(NOT_TESTABLE).texts[-1].get_text() == NOT_TESTABLE.reason
