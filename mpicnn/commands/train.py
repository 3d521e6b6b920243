"""Train a network from settings to a summary."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mpicnn import models
from mpicnn.agreement import agree, from_root, same
from mpicnn.checkpoint import Checkpoints
from mpicnn.config import Settings
from mpicnn.data.file import Dataset, open_dataset
from mpicnn.devices import choose_device
from mpicnn.environment import environment
from mpicnn.errors import UserError
from mpicnn.metrics import Metrics
from mpicnn.outcome import first_lines, outcome
from mpicnn.planfile import plan_toml
from mpicnn.progress import Progress, Reporter, say
from mpicnn.report import summary
from mpicnn.rundir import CHECKPOINTS, CONFIG, METRICS, PLAN, open_run, write_text
from mpicnn.session import Session, make_plan, progress_of, read_settings
from mpicnn.signals import Signals
from mpicnn.trace import merged
from mpicnn.trained import warn
from mpicnn.training import Silent, Training, Watcher, augmentation

if TYPE_CHECKING:
    from mpi4py import MPI

STOPPED = 75
"""Exit code of a run that a signal ended early, after saving: it can go on (EX_TEMPFAIL)."""


def main(comm: MPI.Intracomm) -> int:
    """Train as the settings say; return the exit code. Collective."""
    settings = read_settings(comm, "train", Settings)
    with Signals() as signals, agree(comm, open_dataset, settings.data) as data:
        same(comm, f"data {settings.data}", data.digest.encode())
        session = open_session(comm, settings, data)
        directory = Path(from_root(comm, lambda: str(open_run(settings))))
        checkpoints = Checkpoints(directory / CHECKPOINTS, settings.keep, warn)
        training = Training(session, settings, data, checkpoints)
        if settings.resume:
            training.restore()
        from_root(comm, note, training, directory)
        return 0 if watch(training, directory, signals) else STOPPED


def open_session(comm: MPI.Intracomm, settings: Settings, data: Dataset) -> Session:
    """Divide the network over the ranks as the settings say. Collective."""
    shape = agree(comm, augmentation(settings).out_shape, data.shape)
    model = agree(comm, models.load, settings.model, shape, len(data.classes))
    device = choose_device(comm, settings, settings.precision, environment())
    plan = make_plan(comm, device.ops, model, settings, settings.batch, settings.precision)
    session = Session(
        comm, device, model, plan, settings.precision, settings.seed,
        bucket=int(settings.bucket_mb * 1e6),
        progress=agree(comm, progress_of, comm, settings.progress_thread),
    )  # fmt: skip
    if settings.fc_update == "round":
        agree(comm, check_rounds, session, settings.batch)
    return session


def check_rounds(session: Session, batch: int) -> None:
    """Raise UserError unless a full batch is divided into the rounds that FC weights change in.

    A rank without work has no round under scheme (b). Elsewhere a missing round is a mistake: the
    rate was chosen for a K-th of the batch. Only the last pipeline stage has rounds and can tell.
    """
    plan, ranks = session.plan, session.plan.grid[-1]
    if plan.micro_batches > 1:
        raise UserError(
            "fc-update round: FC weights change after every round of a whole batch; use "
            "micro-batches 1"
        )
    if plan.scheme == "a":
        raise UserError(
            "fc-update round: scheme (a) has one round a step; use scheme b or c, or fc-update step"
        )
    rounds = len(session.program(batch).micro_batches[0].rounds)
    if plan.scheme == "c" and 0 < rounds < ranks:
        raise UserError(
            f"fc-update round: batch {batch} leaves {ranks - rounds} of the {ranks} rounds of "
            "scheme (c) without examples; use a larger batch, fewer ranks or scheme b"
        )


def note(training: Training, directory: Path) -> None:
    """Leave settings and plan in the run's directory."""
    write_text(directory / CONFIG, training.settings.to_toml())
    write_text(directory / PLAN, plan_toml(training.session.plan))


def watch(training: Training, directory: Path, signals: Signals) -> bool:
    """Run the training and show it on rank 0; return whether it came to its end. Collective."""
    begun = training.step
    opening = first_lines(training, directory)
    mesh = training.session.mesh
    root = mesh.world.rank == 0
    with ExitStack() as stack:
        watcher: Watcher = Silent()
        if root:
            say(opening, sys.stdout)
            watcher = reporter(training, directory, stack)
        since = perf_counter()
        finished = training.run(watcher, signals)
        seconds = perf_counter() - since
    if training.trace:
        timelines = mesh.texts(training.trace.text())
        from_root(mesh.world.comm, write_text, Path(training.settings.trace), merged(timelines))
    ending = summary(outcome(training, directory, begun, seconds))
    if root:
        say(ending, sys.stdout)
        if not finished:
            say(f"stopped by {signals.requested or 'another rank'}, saved", sys.stdout)
    return finished


def reporter(training: Training, directory: Path, stack: ExitStack) -> Reporter:
    """Return what shows the run and writes its metrics; `stack` closes it."""
    resumed = training.step if training.settings.resume else None
    metrics = stack.enter_context(Metrics(directory / METRICS, resumed))
    progress = Progress(training.settings.progress, training.steps, training.step)
    return Reporter(
        stack.enter_context(progress),
        metrics,
        training.steps_per_epoch,
        len(training.data.split("test")),
        training.settings.log_every,
    )
