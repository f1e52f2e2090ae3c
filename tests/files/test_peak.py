"""Peak memory: what a block takes and gives back is seen, and a system that does not tell is no number."""

import sys

import pytest
import torch

from aiao_diffusers.errors import ConfigError
from aiao_diffusers.files import peak
from aiao_diffusers.files.peak import Peak, peak_bytes, reset_peak, resident_bytes


MIB = 2**20


def take(mib):
    torch.ones(mib * MIB, dtype=torch.uint8)  # written to, so resident; larger than what the allocator keeps


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_peak_that_is_gone_is_seen():
    small, large = Peak(), Peak()
    with small.measured():
        take(1)
    with large.measured():
        take(96)
    assert small.mib < 48 and 90 < large.mib < 150
    assert peak_bytes() > 32 * MIB and peak_bytes() >= resident_bytes() > 32 * MIB
    reset_peak()
    assert peak_bytes() - resident_bytes() < 48 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_body_that_raises_is_measured_too():
    seen = Peak()
    with pytest.raises(KeyError), seen.measured(trim=False):
        raise KeyError
    assert seen.mib is not None


def test_a_system_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(peak, "_PROC", tmp_path / "none")
    for ask in (peak_bytes, resident_bytes, reset_peak):
        with pytest.raises(ConfigError, match="run on Linux"):
            ask()
    seen = Peak()
    with seen.measured():
        pass
    assert seen.mib is None
