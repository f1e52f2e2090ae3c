"""Families end to end; in the full run each is trained until its mark reads."""

import pytest
import torch
from _kind import FULL, sample

from aiao_diffusers.denoiser.call import evaluate

from .end_to_end import NAMES, READS, run


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(NAMES, 12))
@pytest.mark.filterwarnings("ignore:the mark is too weak")
def test_a_family_is_marked_saved_loaded_and_read(name, tmp_path):
    found = run(name, tmp_path, READS[name] if FULL else 1)
    marked, loaded = found.marked.state_dict(), found.loaded.state_dict()
    assert marked.keys() == loaded.keys() and all(torch.equal(value, loaded[key]) for key, value in marked.items())
    level = torch.full((len(found.data),), 0.5 * 1000)
    with torch.no_grad():
        ours, theirs = (
            evaluate(part, found.data.latents, level, found.data.keywords()) for part in (found.marked, found.loaded)
        )
    # The same weights, mapped from a file: sums may round in another order.
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
    assert all(value is not None for value in found.log10_p.values())
    assert found.verdicts["wrong key"] == found.verdicts["clean twin"] == "not_verified"
    if FULL:
        assert found.verdicts["marked"] == "verified", found.log10_p
        # A miniature that barely reads may fall below alpha with an adapter on it; most of what it reads stays.
        assert found.log10_p["lora"] < 0.6 * found.log10_p["marked"] and found.log10_p["lora"] < -4, found.log10_p
