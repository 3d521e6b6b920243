"""What a process uses besides time: memory at its peak, bytes that its host's network sends."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_NETWORK = Path("/proc/self/net/dev")
_FORGET_PEAK = "5"


class Peak:
    """The most memory that the process takes up from now on, above what it takes up now.

    Freed memory is given back to the system first, so that what is measured cannot hide in it.
    `forget` leaves out what was taken up and given back since, `close` ends the counting of
    arrays, which slows Python down.
    """

    def __init__(self) -> None:
        gc.collect()
        self._start = float("nan")
        if _RESET.exists():
            ctypes.CDLL(None).malloc_trim(0)
            self._start = _status("VmRSS")
        tracemalloc.start()
        self.forget()

    def forget(self) -> None:
        """Let the peak be what is taken up now."""
        tracemalloc.reset_peak()
        if _RESET.exists():
            _RESET.write_text(_FORGET_PEAK)

    @property
    def mb(self) -> float:
        """Return the peak of the process so far, in MB: Linux only, NaN elsewhere."""
        return (_status("VmHWM") - self._start) / 1e6 if _RESET.exists() else float("nan")

    @property
    def arrays_mb(self) -> float:
        """Return the most that NumPy's arrays, and other things of Python's, took at once, in MB.

        This is the same in every run, which pages of the process are not.
        """
        return tracemalloc.get_traced_memory()[1] / 1e6

    def close(self) -> None:
        """Stop counting arrays."""
        tracemalloc.stop()


def _status(name: str) -> float:
    """Return an entry of the process's status, in bytes."""
    line = next(text for text in _STATUS.read_text().splitlines() if text.startswith(f"{name}:"))
    return 1024.0 * int(line.split()[1])


def network_bytes() -> int:
    """Return the bytes sent by the network interfaces that the process sees, without loopback."""
    if not _NETWORK.exists():
        return 0
    rows = [text.split(":") for text in _NETWORK.read_text().splitlines()[2:]]
    return sum(int(row[1].split()[8]) for row in rows if row[0].strip() != "lo")
