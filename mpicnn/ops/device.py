"""What a backend has beside functions: arrays, prefetch of batches, marks of its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any backend: of NumPy, or of CuPy, which has the same methods."""


class Prefetch(Protocol):
    """Bring batches of bytes to the device: `put` by a thread that reads, `take` by another."""

    def put(self, images: Array, place: Callable[[Array], Array]) -> Any:
        """Begin to bring images (n, c, h, w), uint8; `place` says what is to be made of them."""
        ...

    def take(self, batch: Any) -> Array:
        """Return what `place` makes of the images, for what `put` returned."""
        ...


class DeviceTimer(Protocol):
    """Give marks of the device's time: of when it has done what it was given so far.

    `free` says whether marks cost next to nothing: those of a GPU are events in its stream.
    """

    free: bool

    def since(self) -> Any:
        """Return a mark for the beginning of what is given next."""
        ...

    def until(self) -> Any:
        """Return a mark for the end of what was given last."""
        ...

    def at(self, mark: Any) -> float:
        """Return when the mark was reached (of `perf_counter`, s), waiting for it."""
        ...

    def between(self, since: Any, until: Any) -> float:
        """Return the seconds between two marks, waiting for them."""
        ...


class OnDevice(Protocol):
    """Do what a backend does beside layers: copies, waiting, settings of the device."""

    def upload(self, a: Array) -> Array:
        """Return an array of host memory as the backend computes with it."""
        ...

    def upload_labels(self, labels: NDArray[np.int64], classes: int) -> Array:
        """Return labels (n,) as `softmax_xent` and `topk_correct` take them.

        Raises ValueError for a label outside 0 … classes - 1.
        """
        ...

    def fetch(self, a: Array) -> Callable[[], Array]:
        """Begin to copy an array to host memory; what is returned waits for the copy and gives it.

        It waits for what the array is made of, not for what was begun later.
        """
        ...

    def flat(self, x: Array) -> Array:
        """Return the items of x in logical order, flat: a view where they lie so, else a copy."""
        ...

    def peak_bytes(self) -> float:
        """Return the most memory of the device that the process has taken so far."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was begun has ended."""
        ...

    def set_threads(self, count: int) -> None:
        """Let kernels and NumPy's products use `count` threads; raises ValueError below 1."""
        ...

    def set_convolution(self, methods: str) -> None:
        """Let convolutions use any method ("auto", as at first) or no transforms ("direct").

        Raises ValueError for anything else.
        """
        ...

    def set_precision(self, precision: str) -> None:
        """Multiply in this precision from now on (`mpicnn.precision`), else raise DeviceError."""
        ...

    def Feed(self) -> Prefetch:  # noqa: N802  (a class)
        """Return what brings batches to the device ahead of their use."""
        ...

    def Timer(self) -> DeviceTimer:  # noqa: N802  (a class)
        """Return a new timer of the device."""
        ...
