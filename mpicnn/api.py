"""Train and use networks from Python, on the ranks of a communicator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from mpicnn.job.activity import Activity
from mpicnn.job.agreement import agree
from mpicnn.job.limits import Limits
from mpicnn.job.signals import Signals
from mpicnn.job.watchdog import Watchdog
from mpicnn.run.load import TrainedModel, load_trained
from mpicnn.run.training import Trained, train
from mpicnn.settings.command_settings import LoadSettings
from mpicnn.settings.definitions import Settings
from mpicnn.settings.validation import checked

if TYPE_CHECKING:
    from pathlib import Path


def fit(
    settings: Settings | None = None, comm: MPI.Intracomm | None = None, **named: Any
) -> Trained:
    """Train a network and return how that went.

    `settings` are a run's settings, or they are `named`: `fit(model="lenet5", epochs=2)`, with the
    names of the command's options and _ for -. All ranks of `comm` (default: all that were
    started) call together; rank 0 shows the progress and writes the run directory.
    Raises UserError on all ranks for settings that cannot be, or do not fit data and ranks.
    """
    comm = comm or MPI.COMM_WORLD
    if settings is None:
        settings = agree(comm, checked, Settings, named)
    elif named:
        raise TypeError("give settings or single options, not both")
    limits = Limits.of(settings.stall_warning, settings.stall_abort)
    with Signals() as signals, Watchdog(comm, Activity(), signals, limits) as watchdog:
        watchdog.learn_hosts()
        return train(comm, settings, signals, watchdog)


def load(
    run: str | Path,
    plan: str = "",
    comm: MPI.Intracomm | None = None,
    checkpoint: str | int = "auto",
    **device: Any,
) -> TrainedModel:
    """Return a trained network: a checkpoint of a run directory, or a checkpoint file.

    `checkpoint` says which one of a run: "best", "last", the number of a step, or "auto": the best
    if the run keeps one, else the last.
    It is divided over the ranks of `comm`, which call together, by `plan` (default: the run's own).
    `device` are options such as `threads=2`. Of a network with layers of a user's own class it runs
    the file that the run kept, after a line that says so.
    Raises UserError on all ranks where there is nothing valid to load.
    """
    settings = checked(LoadSettings, {"run": str(run), "checkpoint": str(checkpoint), **device})
    comm = comm or MPI.COMM_WORLD
    return load_trained(comm, settings.run, settings.checkpoint, plan, settings)
