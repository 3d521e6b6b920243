"""What a backend has beside functions: arrays, prefetch of batches, marks of its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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
