"""Bring a source's images into an image file, the work of reading divided over the ranks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from mpicnn.data.layout import SPLITS, Array, Index
from mpicnn.data.source import Source, check_source, first_per_class
from mpicnn.data.write import Writer, check_target, writing
from mpicnn.job.agreement import agree, same
from mpicnn.job.waiting import wait

if TYPE_CHECKING:
    from mpi4py import MPI

# What a rank sends at a time: few enough messages, and small beside any memory.
BLOCK_BYTES = 8 * 2**20


def prepare(
    comm: MPI.Intracomm,
    target: Path,
    make: Callable[[], Source],
    *,
    per_class: tuple[int, int] | None = None,
    gzip: int | None = None,
    overwrite: bool = False,
) -> None:
    """Write the image file `target` from the source that `make` opens; collective.

    Every rank opens the source and reads its share of the images; rank 0 writes. `per_class`
    takes only the first so many training and test images of each class. Whatever goes wrong on
    one rank is raised on all of them: UserError naming the file.
    """
    source, chosen = agree(comm, open_source, target, make, per_class, overwrite)
    outline = repr((source.shape, source.classes)).encode()
    same(comm, "source", outline + b"".join(source.labels[s].tobytes() for s in SPLITS))
    labels = {split: source.labels[split][chosen[split]] for split in SPLITS}
    with contextlib.ExitStack() as stack:
        writer: Writer | None = agree(
            comm,
            stack.enter_context,
            writing(target, source.classes, source.shape, labels, gzip)
            if comm.rank == 0
            else contextlib.nullcontext(),
        )
        for split in SPLITS:
            copy_split(comm, source, split, chosen[split], writer)
        agree(comm, stack.close)


def copy_split(
    comm: MPI.Intracomm, source: Source, split: str, chosen: Index, writer: Writer | None
) -> None:
    """Read the images at `chosen` on all ranks and append them where there is a writer."""
    block = max(1, BLOCK_BYTES // math.prod(source.shape)) * comm.size
    # disable=None: shown only where standard error is a terminal.
    hidden = True if comm.rank else None
    with tqdm(total=len(chosen), desc=split, unit="img", disable=hidden) as bar:
        for edges in rounds(len(chosen), block, comm.size):
            share = chosen[edges[comm.rank] : edges[comm.rank + 1]]
            images = agree(comm, source.read, split, share)
            whole = gather(comm, images, np.diff(edges))
            agree(comm, append, writer, split, whole)
            bar.update(int(edges[-1] - edges[0]))


def open_source(
    target: Path,
    make: Callable[[], Source],
    per_class: tuple[int, int] | None,
    overwrite: bool,
) -> tuple[Source, dict[str, Index]]:
    """Return the source and the places of the images to take from each split."""
    check_target(target, overwrite)
    source = make()
    check_source(source)
    if per_class is None:
        return source, {split: np.arange(len(source.labels[split])) for split in SPLITS}
    counts = dict(zip(SPLITS, per_class, strict=True))
    return source, {split: first_per_class(source, split, counts[split]) for split in SPLITS}


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
