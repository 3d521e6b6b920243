"""Global arrays of which every rank holds a block, and how rank 0 gets them whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.placement import Box, Shape, box_shape
from mpicnn.job.agreement import same
from mpicnn.job.waiting import wait

if TYPE_CHECKING:
    from mpi4py import MPI

Array = NDArray[Any]

_TAG = 41


@dataclass
class Tensor:
    """Describe a global array and the block of it that this rank holds, in host memory.

    `block` has one slice with start and stop per dimension; empty blocks are allowed, and where
    the array is replicated every rank's block is all of it. `array` is the data of that block.
    Raises ValueError where block, array, shape and dtype do not fit together.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block: tuple[slice, ...]
    array: Array

    def __post_init__(self) -> None:
        limits = zip(self.block, self.shape, strict=True)
        inside = all(0 <= part.start <= part.stop <= n for part, n in limits)
        lengths = tuple(part.stop - part.start for part in self.block)
        if not inside or lengths != self.array.shape or self.dtype != self.array.dtype:
            raise ValueError(
                f"block {self.block} of {self.dtype} {self.shape} does not describe an array of "
                f"{self.array.dtype} {self.array.shape}"
            )


def gather(comm: MPI.Intracomm, tensors: dict[str, Tensor]) -> Iterator[tuple[str, Array]]:
    """Bring the tensors to rank 0, one after the other, in the order of their names.

    To be iterated by all ranks; rank 0 gets whole, contiguous arrays, the others their own
    blocks. A block that several ranks hold is sent by the lowest of them. Raises, on all ranks,
    UserError where their tensors are unlike, ValueError where blocks do not make up a tensor.
    """
    for name, owners in _owners(comm, tensors).items():
        yield name, _collect(comm, tensors[name], owners)


def _owners(comm: MPI.Intracomm, tensors: dict[str, Tensor]) -> dict[str, dict[Box, int]]:
    """Return, for every tensor, the distinct blocks and the lowest rank that holds each."""
    names = sorted(tensors)
    outline = "\n".join(f"{n} {tensors[n].dtype.str} {tensors[n].shape}" for n in names)
    same(comm, "the list of tensors in a checkpoint", outline.encode())
    edges = [(s.start, s.stop) for name in names for s in tensors[name].block]
    everyones = _everyones(comm, np.array(edges, np.int64).reshape(-1, 2))
    owners: dict[str, dict[Box, int]] = {}
    row = 0
    for name in names:
        shape = tensors[name].shape
        blocks = everyones[:, row : row + len(shape)]
        row += len(shape)
        owners[name] = {}
        for rank in np.flatnonzero((blocks[..., 0] < blocks[..., 1]).all(axis=1)).tolist():
            owners[name].setdefault(tuple((lo, hi) for lo, hi in blocks[rank].tolist()), rank)
        if not _exact_cover(shape, list(owners[name])):
            raise ValueError(f"the ranks' blocks leave gaps in {name} {shape} or overlap")
    return owners


def _exact_cover(shape: Shape, boxes: list[Box]) -> bool:
    volume = sum(prod(box_shape(box)) for box in boxes)
    if volume != prod(shape) or len(boxes) < 2:
        return volume == prod(shape)
    lo, hi = np.moveaxis(np.array(boxes), -1, 0)
    meet = np.maximum(lo[:, None], lo) < np.minimum(hi[:, None], hi)
    return int(meet.all(axis=-1).sum()) == len(boxes)


def _everyones(comm: MPI.Intracomm, values: Array) -> Array:
    """Return every rank's array of the same shape, stacked in rank order."""
    table = np.empty((comm.size, *values.shape), values.dtype)
    wait(comm.Iallgather(values, table))
    return table


def _collect(comm: MPI.Intracomm, tensor: Tensor, owners: dict[Box, int]) -> Array:
    if comm.rank != 0:
        if comm.rank in owners.values():
            wait(comm.Isend(np.ascontiguousarray(tensor.array), 0, _TAG))
        return tensor.array
    if tensor.array.shape == tensor.shape:
        return np.ascontiguousarray(tensor.array).reshape(tensor.shape)
    whole = np.empty(tensor.shape, tensor.dtype)
    for box, rank in owners.items():
        part = whole[tuple(slice(lo, hi) for lo, hi in box)]
        if rank == 0:
            part[...] = tensor.array
            continue
        landing = part if part.flags.c_contiguous else np.empty(part.shape, part.dtype)
        wait(comm.Irecv(landing, rank, _TAG))
        if landing is not part:
            part[...] = landing
    return whole
