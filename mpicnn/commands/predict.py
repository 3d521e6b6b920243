"""Name the classes that a trained network sees in images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.data.folder import Decoding, decode
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree
from mpicnn.job.output import say
from mpicnn.layers.base import Array
from mpicnn.run.load import TrainedModel, load_trained
from mpicnn.run.setup import read_settings
from mpicnn.run.trainer import augmentation
from mpicnn.settings.definitions import PredictSettings

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm) -> None:
    """Print a line for each image; every rank takes its share of them. Collective."""
    settings = read_settings(comm, "predict", PredictSettings)
    trained = load_trained(comm, settings.checkpoint, "data", settings)
    distributed = trained.distributed
    program = distributed.program(len(settings.images))
    x = agree(comm, read_images, [settings.images[i] for i in program.positions], trained)
    logits = distributed.executor.predict(program, trained.state, x).astype(np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    table = np.zeros((len(settings.images), distributed.model.classes))
    table[program.answers] = odds / odds.sum(axis=1, keepdims=True)
    table = distributed.mesh.sum(table).wait()
    if comm.rank == 0:
        classes = trained.meta["classes"]
        for image, row in zip(settings.images, table, strict=True):
            best = np.argsort(-row, kind="stable")[: settings.top]
            named = "  ".join(f"{classes[i]} {100 * row[i]:.1f} %" for i in best)
            say(None, f"{image}: {named}", fd=1)


def read_images(paths: list[str], trained: TrainedModel) -> Array:
    """Return image files as the network takes them: scaled, cropped, normalized as in testing.

    Raises UserError where a file is no image or its size does not suit.
    """
    meta = trained.meta
    c, h, w = meta["image_shape"]
    decoding = Decoding(size=h if h == w else None, gray=c == 1)
    images = np.empty((len(paths), c, h, w), np.uint8)
    for target, path in zip(images, paths, strict=True):
        image = decode(Path(path), decoding)
        if image.shape != target.shape:
            raise UserError(f"{path}: image of {image.shape}, but the network takes {(c, h, w)}")
        target[...] = image
    augment = augmentation(trained.settings).for_evaluation()
    windows = augment.windows((c, h, w), 0, 0, np.arange(len(paths)))
    mean, std = np.array(meta["mean"]), np.array(meta["std"])
    ops, dtype = trained.distributed.ops, trained.distributed.dtype
    return augment.apply(ops, ops.xp.asarray(images), windows, mean, std, dtype)
