"""Score a trained network on images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.commands.watching import watched
from mpicnn.data.augment import augmentation
from mpicnn.data.file import Dataset
from mpicnn.data.layout import some
from mpicnn.data.verify import verify_sample
from mpicnn.data.write import check_target
from mpicnn.errors import UserError, printable
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.output import say
from mpicnn.run.confusion import Confusion
from mpicnn.run.load import TrainedModel, load_trained
from mpicnn.run.picture import figure
from mpicnn.run.resuming import check_digest, open_data, recorded_data
from mpicnn.run.testing import TestSet, label_map, test
from mpicnn.settings.command_settings import EvaluateSettings

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.job.activity import Activity


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Evaluate a checkpoint on all ranks and print its scores. Collective."""
    with watched(comm, EvaluateSettings, argv) as (settings, watchdog):
        evaluate(comm, settings, watchdog.activity)


def evaluate(comm: MPI.Intracomm, settings: EvaluateSettings, activity: Activity) -> None:
    """Do what the settings say; `activity` follows it. Collective."""
    from_root(comm, check_file, settings)
    trained = load_trained(
        comm, settings.run, settings.checkpoint, settings.plan, settings, activity
    )
    recorded = from_root(comm, recorded_data, trained.path, trained.settings)
    path = settings.data or recorded
    with agree(comm, open_data, path, not settings.data) as data:
        if not settings.data:
            agree(comm, check_digest, data, trained.meta, "another of the same classes")
        verify_sample(comm, data)
        examples = agree(comm, test_set, trained, data, settings.eval_batch, settings.split)
        split = data.split(settings.split)
        guesses = np.zeros(len(split)) if settings.by_class or settings.confusion else None
        since = perf_counter()
        score = test(trained.distributed, trained.state, examples, guesses=guesses)
        assert score is not None, "nothing stops it"
        speed = len(split) / (perf_counter() - since)
    if comm.rank == 0:
        what = f"{len(split)} {split.name} images of {printable(data.path)}"
        ema = trained.settings.ema
        mean = f" (mean of the weights, ema {ema:g})" if ema else ""
        lines = [f"{trained.path}: step {trained.meta['step']}{mean}, {what}"]
        lines.append(f"{split.name}: {score.text()}, {speed:.0f} images/s")
        say(None, "\n".join(lines), fd=1)
    if guesses is not None:
        known = split.labels if examples.labels is None else examples.labels[split.labels]
        seen = Confusion(trained.classes, known, guesses.astype(np.int64))
        from_root(comm, tell, seen, settings)


def check_file(settings: EvaluateSettings) -> str:
    """Raise UserError where the file for the matrix could not be made: before the work is done."""
    if settings.confusion:
        check_target(Path(settings.confusion), settings.overwrite)
    if settings.confusion.lower().endswith(".png"):
        figure("pictures", 1, 1)
    return ""


def tell(seen: Confusion, settings: EvaluateSettings) -> str:
    """Show what is seen in the images of each class, and write it to a file, as the settings say.

    Raises UserError where the file cannot be written.
    """
    if settings.by_class:
        say(None, "\n".join(["", *seen.by_class(), "", *seen.table()]), fd=1)
    if settings.confusion:
        seen.write(Path(settings.confusion))
        say(None, f"\n{settings.confusion}: the confusion matrix", fd=1)
    return ""


def test_set(trained: TrainedModel, data: Dataset, batch: int, split: str) -> TestSet:
    """Return the examples of a data set's split as a trained network wants them.

    Raises UserError where images or classes are not those that it was trained for, and where there
    is no such split.
    """
    data.split(split)
    model, meta = trained.distributed.model, trained.meta
    augment = augmentation(trained.settings)
    shape = augment.out_shape(data.shape)
    if shape != tuple(model.input_shape):
        raise UserError(
            f"data {data.path}: images of {shape}, but the network takes {model.input_shape}"
        )
    try:
        labels = label_map(tuple(data.classes), trained.classes)
    except ValueError as unknown:
        raise UserError(
            f"data {data.path}: has classes that the network does not know: {unknown}; it knows "
            f"{some(trained.classes)}; give the data set the names that the network was trained "
            "with"
        ) from None
    mean, std = np.array(meta["mean"]), np.array(meta["std"])
    return TestSet(data, augment, batch, mean, std, labels, split)
