"""Train a network from settings to a summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpicnn.commands.watching import watched
from mpicnn.run.training import train
from mpicnn.settings.definitions import Settings

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.job.signals import Signals

STOPPED = 75
"""Exit code of a run that a signal ended early, after saving: it can go on (EX_TEMPFAIL)."""


def main(comm: MPI.Intracomm, argv: Sequence[str], signals: Signals) -> int:
    """Train as the settings say; return the exit code. Collective."""
    with watched(comm, Settings, argv, signals) as (settings, watchdog):
        return 0 if train(comm, settings, signals, watchdog).finished else STOPPED
