"""Read image files for HDF5, and refuse a kind of damage that it would never return from.

HDF5 (2.0 and before) never returns from a damaged heap, the place of texts of variable length:
it goes on from object to object, and one that takes no room leads to itself. Heaps have no
checksum that would tell.
"""

from __future__ import annotations

import io
import os
from typing import Any

HEAP = b"GCOL"
HEADER = 16  # of a heap, and of an object in it: a number at 0, a size at 8


class RawFile(io.FileIO):
    """Read a file for h5py, without heaps that have no end."""

    def readinto(self, buffer: Any) -> int:
        """Fill all of `buffer`, with zeros beyond the end. Raises OSError for a damaged heap."""
        view, place = memoryview(buffer).cast("B"), self.tell()
        found = fill(self.fileno(), view, place)
        view[found:] = bytes(len(view) - found)
        if view[:4] == HEAP and endless(self._heap(view, place)):
            raise OSError("a heap of texts is damaged")
        return len(view)

    def _heap(self, begin: memoryview, place: int) -> memoryview:
        """Return all of the heap at `place`, of which HDF5 reads the `begin` at first."""
        size = min(int.from_bytes(begin[8:16], "little"), os.fstat(self.fileno()).st_size - place)
        if size <= len(begin):
            return begin
        whole = memoryview(bytearray(size))
        fill(self.fileno(), whole, place)
        return whole


def fill(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from the file at `offset` (bytes); return how many bytes there were."""
    done = 0
    while done < buffer.nbytes and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    return done


def endless(heap: memoryview) -> bool:
    """Say whether a heap has an object that takes no room."""
    end = min(len(heap), int.from_bytes(heap[8:16], "little"))
    at = HEADER
    while at + HEADER <= end:
        number, size = heap[at : at + 2], int.from_bytes(heap[at + 8 : at + 16], "little")
        # The one without a number is what is free, header included.
        step = HEADER + -(-size // 8) * 8 if any(number) else size
        if not HEADER <= step < 2**63:
            return True
        at += step
    return False
