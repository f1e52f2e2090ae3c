"""The fuzz reaches every outcome, breaks no promise, and sees a loader that lies."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
from _kind import FULL

from aiao_diffusers.bench.audits import fuzz


ROUNDS, SEED = (20_000, 2026) if FULL else (300, 7)


@pytest.mark.slow
@pytest.mark.timeout(ROUNDS)  # a second each, of which a machine alone takes a twentieth
def test_the_fuzz_reaches_every_outcome_and_breaks_no_promise():
    result = fuzz.fuzz(ROUNDS, SEED)
    assert result.rounds == ROUNDS and result.outcomes.keys() >= fuzz.OUTCOMES, result.outcomes
    assert result.slowest_s < fuzz.SECONDS and result.most_mib < fuzz.MARGIN_MIB


@pytest.mark.slow
def test_the_fuzz_sees_a_loader_that_lies(monkeypatch, tmp_path):
    """Its own controls: a promise broken on purpose must end the run."""
    real = fuzz.apply_lora

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


@pytest.mark.slow
def test_the_fuzz_is_seeded():
    one, two = fuzz.fuzz(12, seed=3), fuzz.fuzz(12, seed=3)
    assert (one.outcomes, one.formats) == (two.outcomes, two.formats)
    assert fuzz.fuzz(12, seed=4).formats != one.formats
