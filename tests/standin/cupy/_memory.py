"""Device memory as CuPy hands it out: `Memory`, pointers into it, pinned memory, pools.

Freed memory is filled with NaN in the order of the stream it was allocated on, as CuPy's pool
would hand it to the next array of that stream: who still uses it on another stream sees that.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from hostgpu import memory, streams
from hostgpu.counts import counts

_UNIT = 512  # bytes: the pool's sizes are multiples of it


class OutOfMemoryError(MemoryError):
    """Raised where a pool's limit is reached."""


class MemoryPool:
    """Count the bytes of one device's arrays."""

    def __init__(self) -> None:
        self._used = self._total = self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(Memory(size), 0)

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        return self._total - self._used

    def total_bytes(self) -> int:
        return self._total

    def free_all_blocks(self, stream: Any = None) -> None:
        self._total = self._used

    def get_limit(self) -> int:
        return self._limit

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("either size or fraction")
        self._limit = int(fraction * TOTAL_MEMORY) if size is None else size

    def _take(self, size: int) -> None:
        if self._limit and self._used + size > self._limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes "
                f"(allocated so far: {self._used:,} bytes, limit set to: {self._limit:,} bytes)."
            )
        self._used += size
        self._total = max(self._total, self._used)


TOTAL_MEMORY = 80 << 30
_pools: dict[int, MemoryPool] = {}


def get_default_memory_pool() -> MemoryPool:
    """Return the current device's pool. (CuPy has one object for all, which asks the device.)"""
    return _pools.setdefault(streams.device().number, MemoryPool())


class Memory:
    """Own a block, which belongs to the stream that was current when it was made."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._queue = streams.current()
        self.device_id = self._queue.device.number
        self._pool = get_default_memory_pool()
        self._rounded = -(-size // _UNIT) * _UNIT
        self._block = None
        self._pool._take(self._rounded)
        self._block = memory.Block(size) if size else None

    @property
    def ptr(self) -> int:
        return self._block.address if self._block else 0

    def __del__(self) -> None:
        if getattr(self, "_block", None) is not None:
            self._pool._used -= self._rounded
            self._queue.put(self._block.poison)


class MemoryPointer:
    """Point `offset` bytes into a memory."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem = mem
        self.ptr = mem.ptr + offset if mem.size else 0

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        if size:
            copy(_queue(stream), self.ptr, src.ptr, size)

    def copy_from_host_async(self, mem: int, size: int, stream: Any = None) -> None:
        if size:
            copy(_queue(stream), self.ptr, _address(mem), size)

    def copy_to_host_async(self, mem: int, size: int, stream: Any = None) -> None:
        if size:
            copy(_queue(stream), _address(mem), self.ptr, size)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        fill(_queue(stream), self.ptr, value, size)


def _queue(stream: Any) -> streams.Queue:
    return streams.current() if stream is None else streams.find(stream.ptr)


def _address(mem: Any) -> int:
    return mem if isinstance(mem, int) else mem.value


def host_bytes(address: int, size: int) -> np.ndarray:
    """Return the bytes at an address of ordinary host memory, which somebody must keep."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def copy(queue: streams.Queue, dst: int, src: int, size: int) -> None:
    """Copy bytes in a stream's order; one side may be host memory, told by the address.

    Pinned memory is read and written when the stream gets there. From pageable memory the driver
    takes a copy at once, and to it the call returns only when all is there.
    """
    to, of = _place(dst, size), _place(src, size)
    if to is None and of is None:
        raise memory.AddressError(f"neither {dst:#x} nor {src:#x} is device or pinned memory")
    source = host_bytes(src, size).copy() if of is None else of
    target = host_bytes(dst, size) if to is None else to

    def work() -> None:
        target[:] = source

    counts.launched("copy", source, target)
    mark = queue.put(work)
    if to is None:
        queue.finish(mark.number)


def fill(queue: streams.Queue, address: int, value: int, size: int) -> None:
    """Set bytes in a stream's order."""
    if size:
        memory.find(address, size)
        target = _place(address, size)
        counts.launched("fill", target)
        queue.put(lambda: target.fill(value))


def _place(address: int, size: int) -> np.ndarray | None:
    try:
        block = memory.find(address, size)
    except memory.AddressError as fault:
        if "no live memory" in str(fault):
            return None
        raise
    start = address - block.address
    return block.bytes[start : start + size]


class PinnedMemoryPointer:
    """Pinned host memory that NumPy reads as a buffer. Its size is rounded up to a power of two."""

    mem: memory.Block
    ptr: int

    def size(self) -> int:
        return self.mem.size


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Return pinned memory of at least `size` bytes, filled with NaN."""
    rounded = 1 << max(_UNIT, size, 1).__sub__(1).bit_length()
    block = memory.Block(rounded, pinned=True)
    kind = type("PinnedMemoryPointer", (PinnedMemoryPointer, ctypes.c_byte * rounded), {})
    pointer = kind.from_buffer(block.bytes)
    pointer.mem, pointer.ptr = block, block.address
    return pointer
