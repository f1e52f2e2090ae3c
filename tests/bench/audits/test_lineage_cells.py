"""The grid is the same every time, balanced wherever it is cut, and covers what it promises."""

from dataclasses import asdict, replace

import pytest

from aiao_diffusers.bench.audits import lineage_cells as cells
from aiao_diffusers.bench.audits.lineage_cells import KEYS, KINDS, SIDES, LoraCell, cell_of, grid


def test_is_the_same_every_time_and_no_cell_twice():
    assert grid() == grid() and len({cell.id for cell in grid()}) == len(grid()) >= 200


def test_is_balanced_wherever_it_is_cut():
    found = grid()
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert (first.side, second.side) == SIDES and replace(first, side="twin") == second
    early = found[:80]
    assert {cell.kind for cell in early} == set(KINDS) and {cell.key for cell in early} == set(range(KEYS))
    assert sum(cell.usual for cell in early) > 20 and max(cell.seconds for cell in early) <= 25


def test_covers_what_it_promises():
    found = grid()
    for name, values in (
        ("rank", {4, 8, 16, 32, 64}),
        ("steps", {100, 200, 500, 1000, 2000}),
        ("lr", {1e-5, 1e-4, 1e-3}),
        ("batch", {1, 2, 4, 8}),
        ("pictures", {8}),
        ("method", set(cells.METHODS)),
        ("init", set(cells.INITS)),
        ("optimiser", set(cells.OPTIMISERS)),
        ("model", set(cells.MODELS)),
        ("targets", set(cells.TARGETS)),
    ):
        assert values <= {getattr(cell, name) for cell in found}, name
    assert sum(cell.usual and cell.rank >= 8 and cell.steps >= 500 for cell in found[::2]) >= 20


def test_a_row_gives_its_cell_back():
    cell = grid()[5]
    assert cell_of(asdict(cell) | {"log10_p": -3.0}) == cell


@pytest.mark.parametrize(
    "change",
    [{"method": "dora"}, {"init": "pissa"}, {"optimiser": "sgd"}, {"model": "int8"}, {"lr": 1e-5}, {"dropout": 0.1}],
)
def test_what_is_not_usual(change):
    assert LoraCell().usual and not replace(LoraCell(), **change).usual
