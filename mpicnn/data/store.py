"""Read rows of a dataset of images: sorted, without repeats, each as few bytes as it can be."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import h5py
import numpy as np

from mpicnn.data.layout import MOST_MEMORY_BYTES, Array, Index
from mpicnn.data.raw import fill

PACKING = h5py.h5z.FILTER_DEFLATE
CHECKSUM_BYTES = 4
PIECE_BYTES = 2**20


class Store(Protocol):
    """Give rows of a dataset of images."""

    def read(self, rows: Index) -> Array:
        """Return the images at `rows` (one or more, ascending): uint8 (len(rows), c, h, w).

        Raises OSError where the file does not give them (any more).
        """
        ...


def open_store(data: h5py.Dataset, descriptor: int) -> Store:
    """Return the quickest way of reading random rows that the storage of `data` allows.

    Plain contiguous data is read at its place in the file, many times faster than through HDF5;
    other data is unpacked once if it is small, else read through HDF5 chunk by chunk.
    """
    if data.chunks is None and data.id.get_offset() is not None:
        return Contiguous(data, descriptor)
    if math.prod(data.shape) <= MOST_MEMORY_BYTES:
        return InMemory(data)
    return Chunked(data)


class Contiguous:
    """Read rows with positioned reads from the open file `descriptor`, which `data` lies in.

    Not a memory map: a file cut short by others would then end the process by SIGBUS.
    """

    def __init__(self, data: h5py.Dataset, descriptor: int) -> None:
        self._descriptor = descriptor
        self._offset = data.id.get_offset()
        self._shape = data.shape[1:]
        self._row_bytes = math.prod(self._shape)

    def read(self, rows: Index) -> Array:
        """Return the images at `rows`, in one read for each run of neighbours."""
        out = np.empty((len(rows), self._row_bytes), np.uint8)
        for lo, hi in runs(rows):
            at = self._offset + int(rows[lo]) * self._row_bytes
            read_exactly(self._descriptor, out[lo:hi].reshape(-1).data, at)
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
            check_chunks(self._data, 0, len(self._data))
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
            check_chunks(self._data, first, first + hi - lo)
            self._data.read_direct(out, np.s_[first : first + hi - lo], np.s_[lo:hi])
        return out


def check_chunks(data: h5py.Dataset, lo: int, hi: int) -> None:
    """Raise OSError where a chunk of the rows lo … hi - 1 is missing, or is packed wrongly.

    HDF5 gives zeros for one that is missing. Of one that is packed it unpacks all that there is, a
    thousand times its size, and of one that holds less it reads what lies behind in memory.
    """
    plan = data.id.get_create_plist()
    filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
    size = math.prod(data.chunks) * data.id.get_type().get_size()
    starts = [range(0, n, k) for n, k in zip(data.shape, data.chunks, strict=True)]
    starts[0] = range(lo // data.chunks[0] * data.chunks[0], hi, data.chunks[0])
    for start in itertools.product(*starts):
        try:
            skipped, stored = data.id.read_direct_chunk(start)
        except RuntimeError as error:
            raise OSError(f"{data.name}: the chunk at {start} is missing") from error
        applied = [each for i, each in enumerate(filters) if not skipped >> i & 1]
        if filters and not holds(stored, applied, size):
            raise OSError(f"{data.name}: the chunk at {start} does not unpack to {size} bytes")


def holds(stored: bytes, filters: Sequence[int], size: int) -> bool:
    """Say whether what is stored unpacks to exactly `size` bytes.

    Of the `filters` that were applied, Fletcher-32 adds its sum, and shuffling changes no size.
    """
    packed = filters.index(PACKING) if PACKING in filters else None
    if h5py.h5z.FILTER_FLETCHER32 in filters[:packed]:
        size += CHECKSUM_BYTES
    return len(stored) == size if packed is None else unpacks_to(stored, size)


def unpacks_to(packed: bytes, size: int) -> bool:
    """Say whether bytes begin with a whole deflated stream of exactly `size` bytes."""
    stream, found = zlib.decompressobj(), 0
    try:
        while packed and not stream.eof and found <= size:
            found += len(stream.decompress(packed, PIECE_BYTES))
            packed = stream.unconsumed_tail
    except zlib.error:
        return False
    return found == size and stream.eof


def runs(rows: Index) -> Iterator[tuple[int, int]]:
    """Yield (lo, hi) for each longest stretch `rows[lo:hi]` of consecutive values."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    yield from itertools.pairwise([0, *cuts.tolist(), len(rows)])


def read_exactly(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill `buffer` from the file at `offset` (bytes).

    Raises OSError where the file ends too early.
    """
    count = fill(descriptor, buffer, offset)
    if count < buffer.nbytes:
        raise OSError(f"the file ends at byte {offset + count}")
