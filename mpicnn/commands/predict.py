"""Name the classes that a trained network sees in images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.data.images import Decoding, decode
from mpicnn.errors import UserError
from mpicnn.job.output import say
from mpicnn.layers.base import Array
from mpicnn.run.load import TrainedModel, load_trained
from mpicnn.run.setup import read_settings
from mpicnn.settings.definitions import PredictSettings

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Print a line for each image; every rank takes its share of them. Collective."""
    settings = read_settings(comm, PredictSettings, argv)
    trained = load_trained(comm, settings.checkpoint, "data", settings)
    table = trained.probabilities(
        len(settings.images),
        lambda positions: read_images([settings.images[i] for i in positions], trained),
    )
    if comm.rank == 0:
        for image, row in zip(settings.images, table, strict=True):
            best = np.argsort(-row, kind="stable")[: settings.top]
            named = "  ".join(f"{trained.classes[i]} {100 * row[i]:.1f} %" for i in best)
            say(None, f"{image}: {named}", fd=1)


def read_images(paths: list[str], trained: TrainedModel) -> Array:
    """Return image files as uint8 (n, c, h, w), scaled as they were for training.

    Raises UserError where a file is no image or its size does not suit.
    """
    c, h, w = trained.meta["image_shape"]
    decoding = Decoding(size=h if h == w else None, gray=c == 1)
    images = np.empty((len(paths), c, h, w), np.uint8)
    for target, path in zip(images, paths, strict=True):
        image = decode(Path(path), decoding)
        if image.shape != target.shape:
            raise UserError(f"{path}: image of {image.shape}, but the network takes {(c, h, w)}")
        target[...] = image
    return images
