"""Draw the curves of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.run.metrics import plot_run
from mpicnn.run.setup import read_settings
from mpicnn.settings.command_settings import ReportSettings

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Draw the curves of the run directory and print the picture's path. Collective."""
    settings = read_settings(comm, ReportSettings, argv)
    path = from_root(comm, lambda: str(plot_run(Path(settings.run_dir))))
    if comm.rank == 0:
        say(None, path, fd=1)
