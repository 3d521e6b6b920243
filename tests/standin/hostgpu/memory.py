"""Device and pinned memory: blocks of host memory with guards, found by address."""

from __future__ import annotations

import bisect
import itertools
import threading
import weakref

import numpy as np

GUARD = 4096  # bytes on either side: enough for a few rows of a small array
_ALIGN = 512  # cudaMalloc aligns to 256 bytes, CuPy's pool rounds sizes up to 512
_FRESH = 0xFF  # NaN in every float format, -1 in integers: what nobody wrote shows

# One lock for all bookkeeping, held for a moment at a time: the garbage collector may free memory
# in the middle of it, in any thread, and two locks would be taken in either order.
LOCK = threading.RLock()


class AddressError(RuntimeError):
    """Say that an address lies in no live block, or that a block's guards were overwritten."""


class Block:
    """Hold `size` bytes at `address`, filled with NaN, between two guards.

    A block is known by its address as long as it lives. Queued work keeps the blocks alive that
    it uses, as the driver does.
    """

    def __init__(self, size: int, pinned: bool = False) -> None:
        raw = np.empty(size + 2 * GUARD + _ALIGN, np.uint8)
        start = GUARD + -(raw.ctypes.data + GUARD) % _ALIGN
        self.size = size
        self.pinned = pinned
        self.bytes = raw[start : start + size]
        self.bytes[:] = _FRESH
        self.address = raw.ctypes.data + start
        self._before = raw[start - GUARD : start]
        self._after = raw[start + size : start + size + GUARD]
        self._pattern = _pattern(next(_numbers))
        self._before[:] = self._pattern
        self._after[:] = self._pattern
        _blocks.add(self)

    def check(self) -> None:
        """Raise AddressError if a byte beside the block has changed."""
        for guard, where in ((self._before, "before"), (self._after, "behind")):
            changed = np.flatnonzero(guard != self._pattern)
            if len(changed):
                at = GUARD - changed[-1] if where == "before" else changed[0]
                guard[:] = self._pattern
                raise AddressError(
                    f"{len(changed)} bytes were written {where} an array of {self.size} bytes, "
                    f"the nearest {at} bytes from it"
                )

    def poison(self) -> None:
        """Fill the block with NaN, as memory that somebody else may have used since."""
        self.bytes[:] = _FRESH


def _pattern(number: int) -> np.ndarray:
    """Return the bytes of a guard: huge finite floats, other ones for every block.

    A copy from one guard to another shows; NaN would hide what is computed from it.
    """
    word = np.uint32(0x7E000000 + number % 0x400000)
    return np.full(GUARD // 4, word).view(np.uint8)


class _Blocks:
    """Find live blocks by address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: dict[int, weakref.ref[Block]] = {}

    def add(self, block: Block) -> None:
        with LOCK:
            bisect.insort(self._starts, block.address)
            self._blocks[block.address] = weakref.ref(block)
        weakref.finalize(block, self._remove, block.address).atexit = False

    def _remove(self, address: int) -> None:
        with LOCK:
            del self._starts[bisect.bisect_left(self._starts, address)]
            del self._blocks[address]

    def at(self, address: int) -> Block | None:
        with LOCK:
            place = bisect.bisect_right(self._starts, address) - 1
            block = self._blocks[self._starts[place]]() if place >= 0 else None
        if block is None or address > block.address + block.size:
            return None
        return block


_blocks = _Blocks()
_numbers = itertools.count(1)


def find(address: int, size: int = 0) -> Block:
    """Return the live block that holds `size` bytes from `address` on, else raise AddressError."""
    block = _blocks.at(address)
    if block is None:
        raise AddressError(f"no live memory at address {address:#x}")
    if address + size > block.address + block.size:
        raise AddressError(
            f"{size} bytes at offset {address - block.address} do not fit in {block.size} bytes"
        )
    return block


def pinned(address: int) -> Block | None:
    """Return the block of pinned host memory at `address`, if it is such memory."""
    block = _blocks.at(address)
    return block if block is not None and block.pinned else None
