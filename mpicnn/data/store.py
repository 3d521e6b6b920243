"""Read rows of a dataset of images: sorted, without repeats, each as few bytes as it can be."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import Protocol

import h5py
import numpy as np

from mpicnn.data.layout import MOST_MEMORY_BYTES, Array, Index


class Store(Protocol):
    """Give rows of a dataset of images."""

    def read(self, rows: Index) -> Array:
        """Return the images at `rows` (one or more, ascending): uint8 (len(rows), c, h, w).

        Raises OSError where the file does not give them (any more).
        """
        ...


def open_store(data: h5py.Dataset) -> Store:
    """Return the quickest way of reading random rows that the storage of `data` allows.

    Plain contiguous data is read at its place in the file, many times faster than through HDF5;
    other data is unpacked once if it is small, else read through HDF5 chunk by chunk.
    """
    if data.chunks is None and data.id.get_offset() is not None:
        return Contiguous(data)
    if math.prod(data.shape) <= MOST_MEMORY_BYTES:
        return InMemory(data)
    return Chunked(data)


class Contiguous:
    """Read rows with positioned reads from the file that HDF5 has open.

    Not a memory map: a file cut short by others would then end the process by SIGBUS.
    """

    def __init__(self, data: h5py.Dataset) -> None:
        self._file = data.file
        self._offset = data.id.get_offset()
        self._shape = data.shape[1:]
        self._row_bytes = math.prod(self._shape)

    def read(self, rows: Index) -> Array:
        """Return the images at `rows`, in one read for each run of neighbours."""
        out = np.empty((len(rows), self._row_bytes), np.uint8)
        descriptor = self._file.id.get_vfd_handle()
        for lo, hi in runs(rows):
            at = self._offset + int(rows[lo]) * self._row_bytes
            read_exactly(descriptor, out[lo:hi].reshape(-1).data, at)
        return out.reshape(len(rows), *self._shape)


class InMemory:
    """Unpack the whole dataset at the first read and keep it: a rank that reads nothing holds none.

    Two threads that both read first would both unpack, which costs time but is right.
    """

    def __init__(self, data: h5py.Dataset) -> None:
        self._data = data
        self._whole: Array | None = None

    def read(self, rows: Index) -> Array:
        """Return copies of the images at `rows`."""
        if self._whole is None:
            self._whole = np.asarray(self._data[()])
        return np.asarray(self._whole[rows])


class Chunked:
    """Read rows through HDF5: right for any storage, slow where a row is not a chunk."""

    def __init__(self, data: h5py.Dataset) -> None:
        self._data = data

    def read(self, rows: Index) -> Array:
        """Return the images at `rows`, in one selection for each run of neighbours."""
        out = np.empty((len(rows), *self._data.shape[1:]), np.uint8)
        for lo, hi in runs(rows):
            first = int(rows[lo])
            self._data.read_direct(out, np.s_[first : first + hi - lo], np.s_[lo:hi])
        return out


def runs(rows: Index) -> Iterator[tuple[int, int]]:
    """Yield (lo, hi) for each longest stretch `rows[lo:hi]` of consecutive values."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    yield from itertools.pairwise([0, *cuts.tolist(), len(rows)])


def read_exactly(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from the file at `offset` (bytes).

    Raises OSError where the file ends too early.
    """
    while buffer.nbytes:
        count = os.preadv(descriptor, [buffer], offset)
        if count == 0:
            raise OSError(f"the file ends at byte {offset}")
        buffer, offset = buffer[count:], offset + count
