"""Name the classes that a trained network sees in images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.commands.watching import watched
from mpicnn.data.images import Decoding, ImageError, decode
from mpicnn.data.listing import Skipped, list_images
from mpicnn.errors import UserError, escaped
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.output import say
from mpicnn.layers.base import Array
from mpicnn.run.answers import Answer, Answers
from mpicnn.run.load import TrainedModel, load_trained, warn
from mpicnn.settings.command_settings import PredictSettings
from mpicnn.text import counted

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.job.activity import Activity

File = tuple[str, str]
"""A path, and why there is no image in it, "" where it is to be opened."""


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Write what is seen in each image, batch by batch; ranks share the work. Collective.

    Raises UserError in the end where a file gave no image; all others are answered.
    """
    with watched(comm, PredictSettings, argv) as (settings, watchdog):
        predict(comm, settings, watchdog.activity)


def predict(comm: MPI.Intracomm, settings: PredictSettings, activity: Activity) -> None:
    """Do what the settings say; `activity` follows it. Collective."""
    files = json.loads(from_root(comm, lambda: json.dumps(files_of(settings.images))))
    trained = load_trained(comm, settings.run, settings.checkpoint, "data", settings, activity)
    failed: list[Answer] = []
    with ExitStack() as stack:
        written = Answers(settings.form, settings.output, settings.overwrite)
        agree(comm, stack.enter_context, nullcontext() if comm.rank else written)
        for lo in range(0, len(files), settings.eval_batch):
            answers = classify(trained, files[lo : lo + settings.eval_batch], settings.top)
            from_root(comm, written.add, answers)
            bad = [each for each in answers if each.error]
            failed += bad
            for each in bad if comm.rank == 0 and len(files) > 1 else []:
                warn(escaped(f"{each.file}: {each.error}"))
    if settings.output and comm.rank == 0:
        say(None, f"{settings.output}: {counted(len(files) - len(failed), 'image')}", fd=1)
    if failed:
        raise UserError(refusal(failed, len(files)))


def refusal(failed: Sequence[Answer], count: int) -> str:
    """Return which of `count` images could not be read, in one line."""
    rest = "; all others are answered" if len(failed) < count else ""
    if len(failed) == 1:
        return f"{failed[0].file}: {failed[0].error}{rest}"
    return f"{len(failed)} of {count} images cannot be read, named above{rest}"


def files_of(named: Sequence[str]) -> list[File]:
    """Return the files that are named, and in place of folders the image files in them.

    Says what else is in the folders.
    """
    files: list[File] = []
    skipped = Skipped()
    for name in named:
        if not os.path.isdir(name):
            files.append((name, ""))
            continue
        try:
            inside = list_images(Path(name), "", skipped)
        except UserError as error:
            files.append((name, str(error)))
            continue
        files += [(os.path.join(name, path), "") for path in inside]
        if not inside:
            files.append((name, "no image files in this folder"))
    for line in skipped.lines():
        say(None, f"mpicnn: note: skipped {escaped(line)}")
    return files


def classify(trained: TrainedModel, files: Sequence[File], top: int) -> list[Answer]:
    """Return the `top` classes of each image; every rank reads its share of them. Collective."""
    failures: list[tuple[int, str]] = []

    def read(positions: Array) -> Array:
        images = np.zeros((len(positions), *trained.meta["image_shape"]), np.uint8)
        for image, position in zip(images, positions.tolist(), strict=True):
            try:
                image[...] = read_image(files[position], trained)
            except ImageError as error:  # others are to be answered all the same
                failures.append((position, error.reason))
        return images

    table = trained.probabilities(len(files), read)
    errors: dict[int, str] = {}
    for told in trained.distributed.mesh.texts(json.dumps(failures)):
        errors |= dict(json.loads(told))
    best = np.argsort(-table, axis=1, kind="stable")[:, :top]
    return [
        Answer(path, error=errors[position])
        if position in errors
        else Answer(path, tuple((trained.classes[i], float(table[position, i])) for i in row))
        for position, ((path, _), row) in enumerate(zip(files, best.tolist(), strict=True))
    ]


def read_image(file: File, trained: TrainedModel) -> Array:
    """Return an image as uint8 (c, h, w), made as images for training were.

    Raises ImageError where there is none, or its shape does not suit.
    """
    path, reason = Path(file[0]), file[1]
    if reason:
        raise ImageError(path, reason)
    c, h, w = trained.meta["image_shape"]
    try:
        image = decode(path, Decoding(size=h if h == w else None, gray=c == 1))
    except MemoryError:
        raise ImageError(path, "not enough memory to open it") from None
    if image.shape != (c, h, w):
        found, expected = (" x ".join(map(str, shape)) for shape in (image.shape, (c, h, w)))
        raise ImageError(path, f"image of {found}, but the network takes {expected}")
    return image
