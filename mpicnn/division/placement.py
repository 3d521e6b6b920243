"""How one tensor lies over the ranks of a mesh: replicated, split, or as a pending sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import isfinite, prod

Shape = tuple[int, ...]
Bounds = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Replicated:
    """Place the whole tensor on every rank of the axis."""

    @property
    def dual(self) -> Partial:
        return Partial()

    def box(self, shape: Shape, rank: int) -> Box:
        """Return the half-open range of every dimension that `rank` holds of `shape`."""
        return tuple((0, n) for n in shape)


@dataclass(frozen=True)
class Partial:
    """Place a summand of the tensor's shape on every rank; the tensor is their sum."""

    @property
    def dual(self) -> Replicated:
        return Replicated()

    def box(self, shape: Shape, rank: int) -> Box:
        """Return the half-open range of every dimension that `rank` holds of `shape`."""
        return tuple((0, n) for n in shape)


@dataclass(frozen=True)
class Split:
    """Place the slice `bounds[r]:bounds[r + 1]` of dimension `dim` on rank r.

    `bounds` has one more entry than the axis has ranks, starts at 0, never falls, and ends at the
    dimension's length. Equal, weighted and empty shares are all of this form; so is "everything
    on the first rank", (0, n, n, …).
    """

    dim: int
    bounds: Bounds

    def __post_init__(self) -> None:
        rising = all(a <= b for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        if len(self.bounds) < 2 or self.bounds[0] != 0 or not rising:
            raise ValueError(f"bounds must rise from 0, got {self.bounds}")

    @property
    def dual(self) -> Split:
        return self

    def range(self, length: int, rank: int) -> tuple[int, int]:
        """Return the half-open range that `rank` holds of the dimension, which has this length."""
        if length != self.bounds[-1]:
            raise ValueError(f"dimension {self.dim} of length {length} does not end {self.bounds}")
        return self.bounds[rank], self.bounds[rank + 1]

    def box(self, shape: Shape, rank: int) -> Box:
        """Return the half-open range of every dimension that `rank` holds of `shape`."""
        mine = self.range(shape[self.dim], rank)
        return tuple(mine if d == self.dim else (0, n) for d, n in enumerate(shape))


Placement = Replicated | Split | Partial
Layout = tuple[Placement, ...]
"""One placement per mesh axis. Where two axes split the same dimension, the later axis divides
what the earlier one left, and its bounds count from there."""


def weighted_bounds(n: int, weights: Sequence[float], least: int = 0) -> Bounds:
    """Divide `n` whole items over ranks in proportion to `weights`.

    Largest remainders decide the rounding (ties go to the lower rank), so every share is within
    one of its exact value. A weight of 0 gets nothing; every other rank gets at least `least`,
    taken from the largest shares. Returns cumulative bounds of length len(weights) + 1.
    Raises ValueError for negative, non-finite or all-zero weights, or too few items.
    """
    return _weighted_bounds(n, tuple(weights), least)


@lru_cache(maxsize=1024)
def _weighted_bounds(n: int, weights: tuple[float, ...], least: int) -> Bounds:
    total = sum(weights)
    if not (isfinite(total) and total > 0 and min(weights) >= 0):
        raise ValueError(f"weights must be finite, not negative and not all 0, got {list(weights)}")
    working = [r for r, weight in enumerate(weights) if weight > 0]
    if n < least * len(working):
        raise ValueError(f"{n} items cannot give {len(working)} ranks {least} each")
    exact = [n * weight / total for weight in weights]
    share = [int(e) for e in exact]
    by_remainder = sorted(working, key=lambda r: (share[r] - exact[r], r))
    for r in by_remainder[: n - sum(share)]:
        share[r] += 1
    for r in working:
        while share[r] < least:
            share[max(working, key=lambda q: (share[q], -q))] -= 1
            share[r] += 1
    return (0, *accumulate(share))


def on_rank(n: int, ranks: int, owner: int) -> Bounds:
    """Return the bounds that leave all `n` items on one of `ranks` ranks."""
    return (*[0] * (owner + 1), *[n] * (ranks - owner))


def on_first(n: int, ranks: int) -> Bounds:
    """Return the bounds that leave all `n` items on rank 0 of `ranks`."""
    return on_rank(n, ranks, 0)


def region(shape: Shape, layout: Layout, coords: Sequence[int]) -> Box:
    """Return the range of every dimension of the whole tensor that lies at mesh `coords`."""
    box = [(0, n) for n in shape]
    for placement, rank in zip(layout, coords, strict=True):
        if isinstance(placement, Split):
            lo, hi = box[placement.dim]
            start, stop = placement.range(hi - lo, rank)
            box[placement.dim] = lo + start, lo + stop
    return tuple(box)


def counts_here(layout: Layout, coords: Sequence[int]) -> bool:
    """Say whether the block at mesh `coords` counts where each part of a tensor shall count once.

    Of the ranks that hold the same block, the first one's does. Raises ValueError for a sum that
    is still to be made: it has no parts.
    """
    if any(isinstance(placement, Partial) for placement in layout):
        raise ValueError(f"a tensor that lies as {layout} has no parts")
    return all(
        isinstance(placement, Split) or at == 0
        for placement, at in zip(layout, coords, strict=True)
    )


def box_shape(box: Box) -> Shape:
    """Return the lengths of a box's ranges."""
    return tuple(hi - lo for lo, hi in box)


def volume(box: Box) -> int:
    """Return the number of items in a box."""
    return prod(box_shape(box))


def local_shape(shape: Shape, layout: Layout, coords: Sequence[int]) -> Shape:
    """Return the shape of the block that lies at mesh `coords`."""
    return box_shape(region(shape, layout, coords))


def intersect(a: Box, b: Box) -> Box:
    """Return the common part of two boxes; where there is none, a range of length 0."""
    common = []
    for (alo, ahi), (blo, bhi) in zip(a, b, strict=True):
        lo = max(alo, blo)
        common.append((lo, max(lo, min(ahi, bhi))))
    return tuple(common)


def are_rows(boxes: list[Box], origin: Box) -> bool:
    """Say whether boxes cut `origin` along its first dimension only and follow in order: then they
    lie one after another in memory as well.
    """
    at = origin[0][0]
    for box in boxes:
        if volume(box) == 0:
            continue
        if box[1:] != origin[1:] or box[0][0] != at:
            return False
        at = box[0][1]
    return at == origin[0][1]


def slices(box: Box, origin: Box) -> tuple[slice, ...]:
    """Return `box` as an index into an array that holds `origin`."""
    return tuple(slice(lo - o, hi - o) for (lo, hi), (o, _) in zip(box, origin, strict=True))


def coordinates(rank: int, grid: Sequence[int]) -> tuple[int, ...]:
    """Return the place of `rank` in the grid, the last axis counting first."""
    place: list[int] = []
    for length in reversed(grid):
        rank, at = divmod(rank, length)
        place.append(at)
    return tuple(reversed(place))
