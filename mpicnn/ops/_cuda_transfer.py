"""Copies between host and GPU memory that neither of them waits for before it must."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn.ops._cuda_arrays import cells, plain

SLOTS = 4
"""Batches of bytes in GPU memory: one in use, two that wait, one that arrives."""


_REACHED, _NOT_READY = 0, 600  # cudaSuccess, cudaErrorNotReady


def mark(stream: Any) -> Any:
    """Return an event that the GPU reaches when the stream has done what it was given so far."""
    event = cupy.cuda.Event(disable_timing=True)
    event.record(stream)
    return event


def reached(event: Any) -> bool:
    """Return whether the GPU has got to an event; raises CUDARuntimeError where it failed before.

    CuPy's `Event.done` takes a failure for not yet.
    """
    status = cupy.cuda.runtime.eventQuery(event.ptr)
    if status not in (_REACHED, _NOT_READY):
        raise cupy.cuda.runtime.CUDARuntimeError(status)
    return bool(status == _REACHED)


def enter(device: Any) -> None:
    """Make a device that of the thread, for good.

    As a context, a device gives the thread back to GPU 0, and that takes memory there.
    """
    if cupy.cuda.runtime.getDevice() != device.id:
        device.use()


@contextmanager
def _current(stream: Any) -> Iterator[None]:
    """Make a stream the thread's current one for a while.

    As a context, a stream of CuPy is followed by the one that was entered before, and not by one
    that `use` made current, as a rank's is.
    """
    before = cupy.cuda.get_current_stream()
    stream.use()
    try:
        yield
    finally:
        before.use()


def synchronize() -> None:
    """Wait until everything that was begun has ended."""
    cupy.cuda.get_current_stream().synchronize()


def upload(a: NDArray[Any]) -> Any:
    """Return a copy of an array in GPU memory, with its channels last."""
    return cells(cupy.asarray(a))


def peak_bytes() -> float:
    """Return the most memory of the GPU that the process has taken so far: CuPy gives none back."""
    return float(cupy.get_default_memory_pool().total_bytes())


def fetch(a: Any) -> Callable[[], NDArray[Any]]:
    """Begin to copy an array to host memory; what is returned waits for the copy and gives it.

    It waits for what the array is made of, not for what was begun later.
    """
    here = pinned(a.shape, a.dtype)
    ordered = plain(a)
    if ordered.size:
        stream = cupy.cuda.get_current_stream()
        ordered.data.copy_to_host_async(here.ctypes.data, ordered.nbytes, stream)
    copied = cupy.cuda.Event(block=True, disable_timing=True)
    copied.record()

    def arrived() -> NDArray[Any]:
        copied.synchronize()
        return here

    return arrived


class Timer:
    """Give marks of the GPU's time (see `mpicnn.step.timing`): events on the stream that computes.

    An interval begins where the one before has ended, so that waiting counts too.
    """

    free = False

    def __init__(self) -> None:
        self._origin = self._last = self.until()
        self._origin.synchronize()
        self._start = perf_counter()

    def since(self) -> Any:
        """Return the last mark."""
        return self._last

    def until(self) -> Any:
        """Return an event that is reached when the GPU has done what it was given so far."""
        self._last = cupy.cuda.Event(block=True)
        self._last.record()
        return self._last

    def at(self, mark: Any) -> float:
        """Return when the mark was reached (of `perf_counter`, s), waiting for it."""
        return self._start + self.between(self._origin, mark)

    def between(self, since: Any, until: Any) -> float:
        """Return the seconds between two marks, waiting for them."""
        until.synchronize()
        return float(cupy.cuda.get_elapsed_time(since, until)) * 1e-3


def pinned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return host memory that the GPU copies to and from by itself; CuPy keeps a pool of it."""
    count = int(np.prod(shape))
    size = max(1, count) * np.dtype(dtype).itemsize
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(size), dtype, count).reshape(shape)


class _Slot:
    """Pinned and GPU memory for one batch of bytes, and when each may be written again."""

    def __init__(self, size: int) -> None:
        self.host = pinned((size,), np.uint8)
        self.here = cupy.empty(size, np.uint8)
        self.copied = cupy.cuda.Event(block=True, disable_timing=True)
        self.used = cupy.cuda.Event(block=True, disable_timing=True)


class Feed:
    """Bring batches to the GPU while it computes: bytes by way of pinned memory, on an own stream.

    `put` is called by the thread that reads, `take` by the one that trains, in the same order. A
    batch must have been taken before the SLOTS-th one after it is put.
    """

    def __init__(self) -> None:
        self._device = cupy.cuda.Device()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._slots: list[_Slot | None] = [None] * SLOTS
        self._next = 0

    def put(self, images: NDArray[np.uint8], place: Callable[[Any], Any]) -> Any:
        """Begin to copy images; `place` is what `take` is to make of them."""
        enter(self._device)
        with _current(self._stream):
            slot = self._slots[self._next]
            if slot is None or slot.host.size < images.size:
                if slot is not None:  # its memory goes to the next who asks on this stream
                    self._stream.wait_event(slot.used)
                slot = self._slots[self._next] = _Slot(images.size)
            slot.copied.synchronize()
            self._next = (self._next + 1) % SLOTS
            slot.host[: images.size] = images.reshape(-1)
            self._stream.wait_event(slot.used)
            if images.size:
                slot.here.data.copy_from_host_async(
                    slot.host.ctypes.data, images.size, self._stream
                )
            slot.copied.record(self._stream)
        return slot, images.shape, place

    def take(self, batch: Any) -> Any:
        """Return what `place` makes of the images, computed after their arrival."""
        slot, shape, place = batch
        stream = cupy.cuda.get_current_stream()
        stream.wait_event(slot.copied)
        x = place(slot.here[: int(np.prod(shape))].reshape(shape))
        slot.used.record(stream)
        return x
