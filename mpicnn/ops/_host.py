"""What differs between devices besides operations, for backends whose device is the host."""

from __future__ import annotations

import resource
from collections.abc import Callable
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mpicnn.ops.interface import Array


def upload(a: Array) -> Array:
    """Return an array of host memory as the backend wants it for computing: here it is itself."""
    return a


def operand(x: Array) -> Array:
    """Return x as convolutions and products read it: here it is itself."""
    return x


def upload_labels(labels: NDArray[np.int64], classes: int) -> Array:
    """Return labels (n,) as `softmax_xent` and `topk_correct` take them.

    Raises ValueError for a label outside 0 … classes - 1.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0 … {classes - 1}")
    return labels


def fetch(a: Array) -> Callable[[], Array]:
    """Begin to copy an array to host memory; what is returned waits for the copy and gives it.

    Here it is the array itself.
    """
    return lambda: a


def flat(x: Array) -> Array:
    """Return the items of x in logical order, flat: a view where they lie so, else a copy."""
    return np.ascontiguousarray(x).reshape(-1)


def peak_bytes() -> float:
    """Return the most memory of the device that the process has taken so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


class Feed:
    """Bring batches of bytes to the device: `put` by a thread that reads, `take` by another.

    Here the one that reads makes of them what `place` says, while the other computes.
    """

    def put(self, images: Array, place: Callable[[Array], Array]) -> Array:
        """Return images (n, c, h, w), uint8, as `place` makes them."""
        return place(images)

    def take(self, batch: Array) -> Array:
        """Return what `put` made."""
        return batch


class Timer:
    """Give marks of the device's time (see `mpicnn.step.timing`): here it is the host's."""

    free = True

    def since(self) -> float:
        """Return now (of `perf_counter`, s)."""
        return perf_counter()

    def until(self) -> float:
        """Return now (of `perf_counter`, s)."""
        return perf_counter()

    def at(self, mark: float) -> float:
        """Return when the mark was made."""
        return mark

    def between(self, since: float, until: float) -> float:
        """Return the seconds between two marks."""
        return until - since


def synchronize() -> None:
    """Wait until everything that was begun has ended: here all of it has, always."""
