"""Resident memory of this process, now and at its peak, as the kernel counts it (Linux)."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ConfigError


_PROC = Path("/proc/self")


def resident_bytes() -> int:
    """Of this process, now; raises as `peak_bytes`."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most since the process began or `reset_peak` was called.

    Raises:
        ConfigError: this system has no /proc.
    """
    return _status("VmHWM")


def reset_peak() -> None:
    """Let the peak be what is resident now; raises as `peak_bytes`."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError as error:
        raise _no_proc() from error


def give_back_freed() -> None:
    """Hand freed memory back to the system, which would otherwise hide what is taken next; slow."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """Growth of resident memory within a block, in MiB; None where the system does not tell."""

    mib: float | None = None

    @contextmanager
    def measured(self, trim: bool = True) -> Iterator["Peak"]:
        """Reset the peak, run the body, read it.

        Args:
            trim: give freed memory back first; slow.
        """
        if trim:
            give_back_freed()
        try:
            reset_peak()
            before = resident_bytes()
        except ConfigError:
            yield self
            return
        try:
            yield self
        finally:
            self.mib = max(0.0, (peak_bytes() - before) / 2**20)


def _status(field: str) -> int:
    try:
        lines = (_PROC / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
    except (OSError, StopIteration) as error:
        raise _no_proc() from error


def _no_proc() -> ConfigError:
    return ConfigError("memory is read from /proc, which this system lacks: run on Linux.")
