"""Bring a source's images into an image file, the work of reading divided over the ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from mpicnn.data.broken import BrokenFiles, list_file, refusal, shared, write_list
from mpicnn.data.draw import Draw, drawn
from mpicnn.data.layout import VALIDATION, Array, ImageShape, Index
from mpicnn.data.source import Found, Source, check_source, first_per_class
from mpicnn.data.write import Writer, check_target, writing
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree, from_root, same
from mpicnn.job.waiting import wait
from mpicnn.text import counted, listed

if TYPE_CHECKING:
    from mpi4py import MPI

# What a rank sends at a time: few enough messages, and small beside any memory.
BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Taking:
    """Say what is taken of a source, and how it is stored.

    `per_class` takes only the first so many images of each class: a number for each split of the
    source. Of the training images so taken, `validation` are drawn for validation. `gzip` is the
    level of compression; `skip_broken` goes on without the files that give no image.
    """

    per_class: tuple[int, ...] = ()
    validation: Draw | None = None
    gzip: int | None = None
    overwrite: bool = False
    skip_broken: bool = False


@dataclass(frozen=True)
class Part:
    """Hold the images that make a split of the file, by their places in a split of the source."""

    split: str
    places: Index


Opener = Callable[[Collection[str]], Source]
"""Opens a source, without the files of the given paths."""


def prepare(comm: MPI.Intracomm, target: Path, make: Opener, taking: Taking) -> list[str]:
    """Write the image file `target` from the source that `make` opens; collective.

    Every rank opens the source and reads its share of the images; rank 0 writes. Returns the
    summary of files read and skipped. All files that give no image are found before
    any of them ends it. Where they are to be skipped, it begins anew without them: the file is as
    if they were not there, and a list of them lies beside it. Whatever goes wrong on one rank is
    raised on all of them: UserError naming the file.
    """
    broken: dict[str, str] = {}
    while True:
        source, chosen = agree(comm, open_source, target, partial(make, broken), taking)
        count = sum(len(part.places) for part in chosen.values())
        try:
            found = write_file(comm, target, source, chosen, taking.gzip)
            break
        except BrokenFiles as error:
            if not taking.skip_broken:
                raise refusal(comm, target, source.where, error.found.broken, count) from None
            broken |= error.found.broken
    lines = source.account(found, count)
    if taking.validation:
        number = counted(len(chosen[VALIDATION].places), "training image")
        lines.append(f"drawn   {number} for validation, by class, seed {taking.validation.seed}")
    if broken:
        from_root(comm, write_list, target, source.where, dict(sorted(broken.items())))
        lines.append(f"skipped {len(broken)} that cannot be read: listed in {list_file(target)}")
    elif comm.rank == 0:
        list_file(target).unlink(missing_ok=True)  # of an earlier attempt
    return lines


def write_file(
    comm: MPI.Intracomm,
    target: Path,
    source: Source,
    chosen: dict[str, Part],
    gzip: int | None,
) -> Found:
    """Write the chosen images of a source and return what was found in them. Collective.

    Raises BrokenFiles on all ranks, and leaves no file, where some give no image.
    """
    outline = repr((source.shape, source.classes)).encode()
    same(comm, "source", outline + b"".join(each.tobytes() for each in source.labels.values()))
    labels = {split: source.labels[part.split][part.places] for split, part in chosen.items()}
    found = Found()
    with contextlib.ExitStack() as stack:
        writer: Writer | None = agree(
            comm,
            stack.enter_context,
            writing(target, source.classes, source.shape, labels, gzip)
            if comm.rank == 0
            else contextlib.nullcontext(),
        )
        for split, part in chosen.items():
            read = partial(source.read, part.split, found=found)
            copy_split(comm, Pieces(split, part.places, source.shape, read), writer)
        found = shared(comm, found)
        if found.broken:
            raise BrokenFiles(found)
        agree(comm, stack.close)
    return found


@dataclass(frozen=True)
class Pieces:
    """Hold which images of a split to take, their shape, and what reads those at some places."""

    split: str
    chosen: Index
    shape: ImageShape
    read: Callable[[Index], Array]


def copy_split(comm: MPI.Intracomm, pieces: Pieces, writer: Writer | None) -> None:
    """Read the images on all ranks and append them where there is a writer."""
    chosen = pieces.chosen
    block = max(1, BLOCK_BYTES // math.prod(pieces.shape)) * comm.size
    # disable=None: shown only where standard error is a terminal.
    hidden = True if comm.rank else None
    with tqdm(total=len(chosen), desc=pieces.split, unit="img", disable=hidden) as bar:
        for edges in rounds(len(chosen), block, comm.size):
            share = chosen[edges[comm.rank] : edges[comm.rank + 1]]
            images = agree(comm, pieces.read, share)
            whole = gather(comm, images, np.diff(edges))
            agree(comm, append, writer, pieces.split, whole)
            bar.update(int(edges[-1] - edges[0]))


def open_source(
    target: Path, make: Callable[[], Source], taking: Taking
) -> tuple[Source, dict[str, Part]]:
    """Return the source, and which of its images make each split of the file."""
    check_target(target, taking.overwrite)
    source = make()
    check_source(source)
    if taking.per_class and len(taking.per_class) != len(source.labels):
        raise UserError(
            f"{source.where}: --per-class {','.join(map(str, taking.per_class))}: expected "
            f"{len(source.labels)} numbers, for {listed(source.labels)} images"
        )
    if taking.per_class:
        firsts = zip(source.labels, taking.per_class, strict=True)
        chosen = {split: Part(split, first_per_class(source, split, n)) for split, n in firsts}
    else:
        chosen = {split: Part(split, np.arange(len(of))) for split, of in source.labels.items()}
    return source, with_validation(source, chosen, taking.validation)


def with_validation(source: Source, chosen: dict[str, Part], draw: Draw | None) -> dict[str, Part]:
    """Return the chosen images with some of the training images for validation instead."""
    if draw is None:
        return chosen
    if VALIDATION in chosen:
        raise UserError(
            f"{source.where}: has images for validation; --validation is for a source without"
        )
    training = chosen["train"].places
    places = drawn(source.labels["train"][training], source.classes, draw)
    return {
        "train": Part("train", np.delete(training, places)),
        VALIDATION: Part("train", training[places]),
        "test": chosen["test"],
    }


def rounds(count: int, block: int, ranks: int) -> Iterator[Index]:
    """Yield edges (ranks + 1,) that divide each `block` of 0 … count-1 evenly over the ranks."""
    for lo in range(0, count, block):
        yield lo + (min(block, count - lo) * np.arange(ranks + 1)) // ranks


def gather(comm: MPI.Intracomm, images: Array, counts: Index) -> Array | None:
    """Return, on rank 0, the ranks' images one after the other; `counts` says how many of each."""
    shape = images.shape[1:]
    whole = np.empty((int(counts.sum()), *shape), np.uint8) if comm.rank == 0 else None
    sizes = (counts * math.prod(shape)).tolist()
    wait(comm.Igatherv(np.ascontiguousarray(images), None if whole is None else [whole, sizes]))
    return whole


def append(writer: Writer | None, split: str, images: Array | None) -> None:
    """Write the next images where this rank has the writer."""
    if writer is not None and images is not None:
        writer.append(split, images)
