"""The table of formats and the fuzz: both must be able to fail."""

from dataclasses import replace

import pytest
from _shipped import ASSETS

from aiao_diffusers.bench.audits import format_files, fuzz
from aiao_diffusers.bench.audits.format_tables import table
from aiao_diffusers.bench.audits.formats import Bench, unexpected
from aiao_diffusers.bench.audits.model_files import Part, upload


@pytest.fixture(scope="module")
def change():
    return fuzz.small_change(fuzz.small_unet())


@pytest.mark.slow
def test_rows_of_the_shipped_model_and_a_row_that_is_off(tmp_path):
    bench = Bench(ASSETS, trials=2)
    wanted = {"kohya, alpha and text encoder": ("verified", "not_verified"), "IP-Adapter": ("not_testable",) * 2}
    rows = []
    for fmt in (*format_files.ADAPTERS, *format_files.NO_FINE_TUNE):
        if fmt.name in wanted:
            for part in bench.changes:
                (tmp_path / fmt.name / part).mkdir(parents=True)
            rows.append(bench.row(fmt, tmp_path / fmt.name))
            assert (rows[-1].marked, rows[-1].clean) == wanted[fmt.name] and rows[-1].as_expected
    assert rows[0].oracle_error < 1e-4 and rows[0].modules == len(bench.changes["marked"].factors)
    assert table(rows).count("\n") == 4
    # A writer that loses half of the change must show: the bench's own control.
    half = format_files.Format("half", lambda c, f: format_files.ADAPTERS[0].write(halved(c), f))
    for part in bench.changes:
        (tmp_path / "half" / part).mkdir(parents=True)
    row = bench.row(half, tmp_path / "half")
    assert row.oracle_error > 0.1 and not row.as_expected


@pytest.mark.slow
def test_weights_beside_and_models_in_memory_and_a_reader_of_the_wrong_file(tmp_path):
    bench, groups = Bench(ASSETS, trials=2), format_files.groups()
    beside, held = groups["Which file of an upload is read"][0], groups["In memory"][1]

    def row(fmt, name):
        for part in bench.changes:
            (tmp_path / name / part).mkdir(parents=True)
        return bench.row(fmt, tmp_path / name, "a group")

    assert row(beside, "beside").as_expected and row(beside, "again").oracle == "diffusers"
    assert row(held, "held").as_expected
    # The same upload, of which a stock loader would run the other weights: both verdicts turn, and so does the error.
    turned = replace(beside, stock=None, write=lambda c, f: upload(Part(decoy=True, shards=True), Part())(c, f))
    wrong = row(turned, "wrong")
    assert (wrong.marked, wrong.clean) == ("not_verified", "verified") and wrong.oracle_error > 0.1
    assert unexpected([wrong]) == [beside.name]


def halved(change: format_files.Change) -> format_files.Change:
    return format_files.Change(change.base, {m: (a, b / 2) for m, (a, b) in change.factors.items()})
