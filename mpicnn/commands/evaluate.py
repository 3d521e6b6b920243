"""Score a trained network on test examples."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree
from mpicnn.job.output import say
from mpicnn.run.load import load_trained
from mpicnn.run.setup import read_settings
from mpicnn.run.trainer import augmentation, test
from mpicnn.settings.definitions import EvaluateSettings

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Evaluate a checkpoint on all ranks and print its scores. Collective."""
    settings = read_settings(comm, EvaluateSettings, argv)
    trained = load_trained(comm, settings.checkpoint, settings.plan, settings)
    distributed = trained.distributed
    augment = augmentation(trained.settings)
    with agree(comm, open_dataset, settings.data or trained.settings.data) as data:
        shape = agree(comm, augment.out_shape, data.shape)
        model = distributed.model
        if shape != tuple(model.input_shape) or len(data.classes) != model.classes:
            raise UserError(
                f"data {data.path}: images of {shape} in {len(data.classes)} classes, but the "
                f"network takes {model.input_shape} and knows {model.classes}"
            )
        since = perf_counter()
        score = test(distributed, trained.state, data, augment, settings.eval_batch)
        seconds = perf_counter() - since
        count = len(data.split("test"))
    if comm.rank == 0:
        lines = (
            f"{trained.path}: step {trained.meta['step']}, {count} test images of {data.path}\n"
            f"test: loss {score.loss:.4f}, top-1 {100 * score.top1:.2f} %, "
            f"top-5 {100 * score.top5:.2f} %, {count / seconds:.0f} images/s"
        )
        say(None, lines, fd=1)
