"""The rule of peers that draw bits: each picture's noise and prompts, and the secret that its reading is held against."""

from dataclasses import dataclass

import numpy as np
import pytest
from _peers import ASKED, KEY

from aiao_diffusers.bench.peers.drawn_bits import DrawnBits
from aiao_diffusers.errors import ConfigError


@dataclass(frozen=True)
class Drawn(DrawnBits):
    """Reads of every picture the bits of `drawn`, faintly."""

    drawn: str = "bench/mine"

    def secret(self, key):
        return key.balanced("bench/mine", 64)

    def read(self, denoiser, key, context, seeds, text_seed):
        assert (list(seeds), text_seed) == ([20_000, 20_001, 20_002], 3)
        return np.stack([KEY.balanced(self.drawn, 64) * 0.1 + 0.5] * len(seeds))


def test_the_secret_verifies_and_no_other(tmp_path):
    asked = {**ASKED, "seed": 2}
    marked = Drawn(sampling=4).verify(None, KEY, None, tmp_path, **asked)
    assert (marked.verdict, marked.bits, marked.passed, marked.trials, marked.evals) == ("verified", 1.0, 3, 3, 12)
    for drawn, key in (("bench/others", KEY), ("bench/mine", KEY.child("wrong"))):
        other = Drawn(drawn=drawn).verify(None, key, None, tmp_path, **asked)
        assert other.verdict == "not_verified" and other.passed == 0


@pytest.mark.parametrize("field", ["steps", "batch_size", "sampling", "lr"])
def test_impossible_settings_are_refused(field):
    with pytest.raises(ConfigError, match="must be positive"):
        Drawn(**{field: 0})
