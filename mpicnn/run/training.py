"""One training run, from settings to a summary."""

from __future__ import annotations

import os
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from mpicnn.checkpoint import Checkpoints
from mpicnn.data.augment import augmentation
from mpicnn.data.file import Dataset
from mpicnn.data.verify import verify_sample
from mpicnn.division.planfile import plan_toml
from mpicnn.errors import UserError
from mpicnn.job.activity import Activity
from mpicnn.job.agreement import agree, from_root, same
from mpicnn.job.environment import environment
from mpicnn.job.signals import Signals
from mpicnn.job.watchdog import Watchdog
from mpicnn.models import Model, freeze
from mpicnn.models.entry import known
from mpicnn.run.callback import Callback, NoCallback
from mpicnn.run.directory import CHECKPOINTS, CONFIG, LOG, METRICS, PLAN, open_run, write_text
from mpicnn.run.dividing import open_distributed
from mpicnn.run.gather import first_lines, gather_summary
from mpicnn.run.load import warn
from mpicnn.run.lock import RunLock
from mpicnn.run.metrics import Metrics
from mpicnn.run.network_file import file_to_run, keep, source_of
from mpicnn.run.output import Output, append_lines
from mpicnn.run.progress import ProgressDisplay, Reporter
from mpicnn.run.resuming import (
    Meta,
    as_kept,
    check_arrays,
    check_data,
    network,
    open_data,
    saved_run,
)
from mpicnn.run.summary import summary
from mpicnn.run.testing import Score
from mpicnn.run.trainer import Trainer
from mpicnn.settings.definitions import Settings
from mpicnn.settings.plan_groups import AUTO
from mpicnn.step.trace import merged

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.run.prediction import Prediction
    from mpicnn.run.starting import Start


@dataclass(frozen=True)
class Trained:
    """Say how a run went: its directory, its steps so far, the last test, and whether it ended.

    Where the data have images for validation, the last test of a run that ended is on the test
    images, of the best checkpoint if one is kept.
    A run that a signal stops early has saved a checkpoint and can be resumed.
    """

    run_dir: Path
    steps: int
    score: Score | None
    finished: bool


def train(
    comm: MPI.Intracomm,
    settings: Settings,
    signals: Signals,
    watchdog: Watchdog | None = None,
) -> Trained:
    """Train as the settings say, or until `signals` ask for a stop. Collective.

    `watchdog`, which has been entered, follows what this rank does. Rank 0 shows how it goes.
    Raises UserError on all ranks where settings, files and ranks do not fit together.
    """
    watchdog = watchdog or Watchdog(comm, Activity(), signals)
    activity = watchdog.activity
    with ExitStack() as stack:
        saved = saved_run(comm, settings)
        data = stack.enter_context(agree(comm, open_data, settings.data, saved is not None))
        same(comm, f"data {settings.data}", agree(comm, lambda: data.digest).encode())
        verify_sample(comm, data)
        if saved:
            check_data(comm, data, saved)
        model, source = open_model(comm, settings, data, saved)
        start = None if saved else first_weights(comm, settings, data, model)
        measuring = settings.shares == "measured" or settings.plan == AUTO
        with signals.at_once("while speeds were measured") if measuring else nullcontext():
            distributed = open_distributed(comm, settings, data, model, activity)
        directory = Path(from_root(comm, lambda: str(open_run(settings))))
        lock = nullcontext() if comm.rank else RunLock(directory, environment())
        agree(comm, stack.enter_context, lock)
        watchdog.note = partial(append_lines, directory / LOG)
        tracing = bool(from_root(comm, traced, settings))
        checkpoints = Checkpoints(directory / CHECKPOINTS, settings.keep, warn)
        trainer = Trainer(distributed, as_kept(settings, saved), data, checkpoints)
        trainer.tracing = tracing
        trainer.code = from_root(comm, keep, directory, source) if source else ""
        if settings.resume:
            trainer.restore()
        if start:
            distributed.take(trainer.state, Path(start.path), start.digest, start.sources)
        from_root(comm, note, trainer, directory)
        if settings.forecast and trainer.step < trainer.steps:
            trainer.expected = forecast(trainer)
        opening = first_lines(trainer, directory, start)
        finished = watch(trainer, directory, opening, signals)
        score = trainer.tested.score if trainer.tested else None
        return Trained(directory, trainer.step, score, finished)


def forecast(trainer: Trainer) -> Prediction:
    """Return what a step of a run is expected to take. Collective."""
    from mpicnn.run.prediction import predict  # most runs do without it, and start sooner

    trainer.distributed.activity.begin("dry steps", waits=True)
    batch = min(trainer.settings.batch, len(trainer.data.split("train")))
    return predict(trainer.distributed, trainer.optimiser, batch)


def open_model(
    comm: MPI.Intracomm, settings: Settings, data: Dataset, saved: Meta | None
) -> tuple[Model, bytes]:
    """Return the network to train; `saved` are the meta data of the run to go on with. Collective.

    With it comes the Python file that defines it, where it has layer classes of its own.
    Raises UserError on all ranks where there is none that suits.
    """
    file = from_root(comm, file_to_run, settings, saved, Path(settings.run_dir))
    source = source_of(file)
    same(comm, f"network {file}", source)
    shape = agree(comm, augmentation(settings).out_shape, data.shape)
    model = agree(comm, network, settings, shape, len(data.classes), saved, file)
    model = agree(comm, freeze, model, settings.freeze)
    if saved:
        from_root(comm, check_arrays, settings, model)
    return model, b"" if known(model.describe()) else source


def first_weights(
    comm: MPI.Intracomm, settings: Settings, data: Dataset, model: Model
) -> Start | None:
    """Return which weights a new run begins with, None for fresh ones. Collective.

    Raises UserError on all ranks where they do not fit.
    """
    if not settings.init:
        return None
    from mpicnn.run.starting import starting  # most runs do without it, and start sooner

    return starting(comm, settings.init, model, data.classes)


def traced(settings: Settings) -> str:
    """Return the file for the timeline, "" for none. Raises UserError where it cannot be written.

    A run that goes on leaves the timeline of its first part as it is.
    """
    path = Path(settings.trace)
    if settings.trace and (path.exists() or path.is_symlink()):
        if settings.resume:
            warn(f"trace {path}: is there already, so no other is made")
            return ""
        raise UserError(f"trace {path}: exists already; remove it, or give another name")
    if settings.trace and not os.access(path.parent, os.W_OK):
        raise UserError(f"trace {path}: no directory that can be written; give another name")
    return settings.trace


def note(trainer: Trainer, directory: Path) -> None:
    """Write settings and plan into the run's directory."""
    write_text(directory / CONFIG, trainer.settings.to_toml())
    write_text(directory / PLAN, plan_toml(trainer.distributed.plan))


def watch(trainer: Trainer, directory: Path, opening: str, signals: Signals) -> bool:
    """Run the training and show it on rank 0, behind the lines `opening`. Collective.

    Returns whether it came to its end.
    """
    begun = trainer.step
    mesh = trainer.distributed.mesh
    output: Output | None = None
    with ExitStack() as outer:
        if mesh.world.rank == 0:
            output = outer.enter_context(Output(directory / LOG))
            output.show(opening)
        with ExitStack() as stack:
            watcher = reporter(trainer, directory, output, stack) if output else NoCallback()
            since = perf_counter()
            finished = trainer.run(watcher, signals)
            seconds = perf_counter() - since
        if trainer.trace:
            timelines = mesh.texts(trainer.trace.text())
            from_root(mesh.world.comm, write_text, Path(trainer.settings.trace), merged(timelines))
        ending = summary(gather_summary(trainer, directory, begun, seconds))
        if not finished:
            ending += f"\nstopped by {signals.requested or 'another rank'}, saved"
        if output:
            output.show(ending)
    return finished


def reporter(trainer: Trainer, directory: Path, output: Output, stack: ExitStack) -> Callback:
    """Return what shows the run and writes its metrics; `stack` closes it."""
    resumed = trainer.step if trainer.settings.resume else None
    metrics = stack.enter_context(Metrics(directory / METRICS, resumed))
    if metrics.damaged:
        output.show(f"note: {METRICS} was damaged, and is {metrics.damaged} now; a new one begins")
    progress = ProgressDisplay(
        trainer.settings.progress, trainer.steps, trainer.step,
        output,  # type: ignore[arg-type]  # as much of a stream as is needed
        log=output.log,
    )  # fmt: skip
    return Reporter(
        stack.enter_context(progress),
        metrics,
        trainer.steps_per_epoch,
        {name: len(split) for name, split in trainer.data.splits.items()},
        trainer.settings.log_every,
    )
