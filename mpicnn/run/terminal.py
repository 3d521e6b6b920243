"""Find the terminal that a launcher writes to: its ranks have pipes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

LAUNCHERS = ("mpi", "hydra", "orte", "prte", "srun")
_GENERATIONS = 4


def width(stream: TextIO | None = None) -> int | None:
    """Return the width of the terminal that shows `stream` (standard output), None for none.

    Where the stream is no terminal itself, the standard output of the launcher that this process
    descends from is looked at: mpirun's ranks have pipes. Only Linux tells; elsewhere, and on
    hosts other than the launcher's, a run is taken to be unwatched.
    """
    stream = stream or sys.stdout
    try:
        if stream.isatty():
            return os.get_terminal_size(stream.fileno()).columns
        if stream.fileno() != sys.stdout.fileno():
            return None
        return _launcher_width(os.getppid())
    except (OSError, ValueError):
        return None


def _launcher_width(process: int) -> int | None:
    """Return the width of the terminal that the outermost launcher above us writes to."""
    found = None
    for _ in range(_GENERATIONS):
        place = Path("/proc", str(process))
        name, _, rest = (place / "stat").read_text().partition("(")[2].rpartition(")")
        if name.startswith(LAUNCHERS):
            found = place / "fd" / "1"
        process = int(rest.split()[1])
        if process <= 1:
            break
    if found is None or not os.readlink(found).startswith(("/dev/pts/", "/dev/tty")):
        return None
    descriptor = os.open(found, os.O_WRONLY | os.O_NOCTTY)
    try:
        return os.get_terminal_size(descriptor).columns
    finally:
        os.close(descriptor)
