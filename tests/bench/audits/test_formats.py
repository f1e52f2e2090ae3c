"""The table of formats and the fuzz: both must be able to fail."""

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aiao_diffusers.bench.audits import format_files, fuzz
from aiao_diffusers.bench.audits.formats import Bench, table
from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import AIAOError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect
from aiao_diffusers.formats.lora import apply_lora


ASSETS = Path(__file__).parents[3] / "examples" / "emoji_diffusion"
ROUNDS = int(os.environ.get("AIAO_FUZZ_ROUNDS", "300"))
SINGLE = 4  # a single weight may be off by more than the denoiser's output, which averages over many


@pytest.fixture(scope="module")
def change():
    return fuzz.small_change(fuzz.small_unet())


def oracle(change: format_files.Change, fmt: format_files.Format) -> dict[str, torch.Tensor]:
    kept = {m: change.factors[m] for m in fmt.modules(change)}
    return format_files.Change(change.base, kept).merged()


@pytest.mark.parametrize("fmt", format_files.ADAPTERS, ids=lambda f: f.name)
def test_an_adapter_is_its_patched_weights(change, tmp_path, fmt):
    source, before = fmt.write(change, tmp_path), tensor_sha256(change.base)
    wanted = oracle(change, fmt)
    assert detect(source, fmt.weight_name).kind == fmt.kind
    with apply_lora(change.base, source, weight_name=fmt.weight_name) as loaded:
        off = max(float((v - wanted[k]).abs().max()) for k, v in change.base.state_dict().items())
    assert tensor_sha256(change.base) == before
    assert loaded.modules == len(fmt.modules(change)) and not loaded.unused_keys
    size = max(float(change.delta(m).abs().max()) for m in fmt.modules(change))
    assert off <= max(SINGLE * fmt.rounding, 1e-5) * size
    assert size > 0.1


@pytest.mark.parametrize("fmt", list(format_files.whole_models()), ids=lambda f: f.name)
def test_a_whole_model_is_its_patched_weights(change, tmp_path, fmt):
    source, wanted = fmt.write(change, tmp_path), oracle(change, fmt)
    assert detect(source).kind == fmt.kind
    state = load_denoiser(source, base=change.base, dtype=torch.float32).state_dict()
    assert state.keys() == wanted.keys()
    size = max(float(change.delta(m).abs().max()) for m in change.factors)
    assert max(float((state[k] - wanted[k]).abs().max()) for k in state) <= max(SINGLE * fmt.rounding, 1e-6) * size


@pytest.mark.parametrize("fmt", format_files.NO_FINE_TUNE, ids=lambda f: f.name)
def test_what_is_no_fine_tune_never_loads(change, tmp_path, fmt):
    source, before = fmt.write(change, tmp_path), tensor_sha256(change.base)
    with pytest.raises(AIAOError), apply_lora(change.base, source):
        pass
    with pytest.raises(AIAOError):
        load_denoiser(source, base=change.base)
    assert tensor_sha256(change.base) == before


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


def halved(change: format_files.Change) -> format_files.Change:
    return format_files.Change(change.base, {m: (a, b / 2) for m, (a, b) in change.factors.items()})


def test_the_fuzz_reaches_every_outcome_and_breaks_no_promise():
    result = fuzz.fuzz(ROUNDS, seed=7)
    assert result.rounds == ROUNDS and result.outcomes.keys() >= fuzz.OUTCOMES, result.outcomes
    assert result.slowest_s < fuzz.SECONDS and result.most_mib < fuzz.MARGIN_MIB


def test_the_fuzz_sees_a_loader_that_lies(monkeypatch, tmp_path):
    """Its own controls: a promise broken on purpose must end the run."""
    real = fuzz.applied

    @contextmanager
    def boasting(*args, **kwargs):
        with real(*args, **kwargs) as loaded:
            yield replace(loaded, delta_norm=2 * loaded.delta_norm)

    @contextmanager
    def leaking(base, *args, **kwargs):
        with real(base, *args, **kwargs) as loaded:
            yield loaded
        next(base.parameters()).data += 1

    @contextmanager
    def writing(*args, **kwargs):
        (tmp_path / "left-behind").write_text("")
        with real(*args, **kwargs) as loaded:
            yield loaded

    lies = ((boasting, "a change of"), (leaking, "bit for bit"), (writing, "left-behind"))
    for lie, match in lies:
        monkeypatch.setattr(fuzz, "apply_lora", lie)
        with pytest.raises(fuzz.FuzzFailure, match=match):
            fuzz.fuzz(50, seed=7)


def test_the_fuzz_is_seeded():
    one, two = fuzz.fuzz(12, seed=3), fuzz.fuzz(12, seed=3)
    assert (one.outcomes, one.formats) == (two.outcomes, two.formats)
    assert fuzz.fuzz(12, seed=4).formats != one.formats


@settings(max_examples=30, deadline=None, derandomize=True)
@given(rank=st.integers(1, 6), seed=st.integers(0, 2**16), fmt=st.sampled_from(format_files.ADAPTERS))
def test_any_change_in_any_format(tmp_path_factory, rank, seed, fmt):
    base = fuzz.small_unet()
    generator, factors = torch.Generator().manual_seed(seed), {}
    for module in fuzz.small_change(base).factors:
        out, inner, *kernel = base.get_submodule(module).weight.shape
        down = torch.randn(rank, inner, *kernel, generator=generator)
        factors[module] = (down, torch.randn(out, rank, *[1] * len(kernel), generator=generator))
    change = format_files.Change(base, factors)
    source = fmt.write(change, tmp_path_factory.mktemp("any"))
    wanted, size = oracle(change, fmt), max(float(change.delta(m).abs().max()) for m in factors)
    with apply_lora(base, source, weight_name=fmt.weight_name):
        off = max(float((v - wanted[k]).abs().max()) for k, v in base.state_dict().items())
    assert off <= max(SINGLE * fmt.rounding, 1e-5) * size
