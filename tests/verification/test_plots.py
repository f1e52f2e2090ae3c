"""What a report draws is what was read."""

import dataclasses
from itertools import combinations
from math import comb

import numpy as np
from _reports import NOT_TESTABLE, REPORT, SITES

from aiao_diffusers.verification.plots import figure, null_law, panels


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

    def test_a_reading_without_trials_has_no_rate(self):
        fields = {"verification_rate": None, "subpaths": (), "plan": {"name": "lineage"}}
        read = dataclasses.replace(REPORT, **fields)
        assert list(panels(read)) == ["sites", "null"] and len([a for a in figure(read).axes if a.axison]) == 2
        assert panels(read)["sites"].axes[0].get_title() == "Carrier sites"

    def test_whole_figure(self):
        assert len(figure(REPORT).axes) == 5  # four panels and a colour bar
        assert figure(NOT_TESTABLE).texts[-1].get_text() == NOT_TESTABLE.reason
