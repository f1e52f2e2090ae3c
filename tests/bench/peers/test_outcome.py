"""Bits are judged by their mean and one by one."""

import numpy as np
import pytest
from _peers import KEY

from aiao_diffusers.bench.peers.latent_message import message
from aiao_diffusers.bench.peers.outcome import outcome_of_bits


def test_bits_are_judged_by_their_mean_and_one_by_one():
    secret = message(KEY)
    read = np.stack([secret, secret, -secret * 0.5])
    found = outcome_of_bits(read, secret, alpha=1e-6, evals=24)
    assert found.verdict == "verified" and found.bits == 1.0 and found.log10_p == pytest.approx(-18.26, abs=0.01)
    assert (found.passed, found.trials, found.evals) == (2, 3, 24)
    assert outcome_of_bits(-read, secret, alpha=1e-6, evals=24).log10_p == pytest.approx(0.0, abs=1e-9)
