"""How one tensor lies over the ranks of a mesh: replicated, split, or as a pending sum."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Bounds = tuple[int, ...]
Box = tuple[tuple[int, int], ...]
Ranges = NDArray[np.int64]
"""Where ranges begin and end, by place of the mesh: int64 (2, *grid)."""


@dataclass(frozen=True)
class Replicated:
    """Place the whole tensor on every rank of the axis."""

    @property
    def dual(self) -> Partial:
        """Return how the gradient of a tensor lies that is placed so."""
        return Partial()

    def box(self, shape: Shape, rank: int) -> Box:
        """Return the half-open range of every dimension that `rank` holds of `shape`."""
        return tuple((0, n) for n in shape)


@dataclass(frozen=True)
class Partial:
    """Place a summand of the tensor's shape on every rank; the tensor is their sum."""

    @property
    def dual(self) -> Replicated:
        """Return how the gradient of a tensor lies that is placed so."""
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
        rising = list(self.bounds) == sorted(self.bounds)
        if len(self.bounds) < 2 or self.bounds[0] != 0 or not rising:
            raise ValueError(f"bounds must rise from 0, got {self.bounds}")

    @property
    def dual(self) -> Split:
        """Return how the gradient of a tensor lies that is placed so."""
        return self

    @cached_property
    def ends(self) -> Ranges:
        """Return where all ranks' parts begin, and where they end: int64 (2, ranks)."""
        bounds = np.array(self.bounds)
        return np.stack([bounds[:-1], bounds[1:]])

    def range(self, length: int, rank: int) -> tuple[int, int]:
        """Return the half-open range that `rank` holds of the dimension, which has this length."""
        if length != self.bounds[-1]:
            raise ValueError(f"dimension {self.dim} of length {length} does not end {self.bounds}")
        return self.bounds[rank], self.bounds[rank + 1]

    def cuts_rows(self, box: Box) -> bool:
        """Say whether a box's parts on all ranks lie one after another in memory, as in the box."""
        lo, hi = box[self.dim]
        return self.dim == 0 or lo == hi or self.bounds[bisect(self.bounds, lo)] >= hi

    def box(self, shape: Shape, rank: int) -> Box:
        """Return the half-open range of every dimension that `rank` holds of `shape`."""
        mine = self.range(shape[self.dim], rank)
        return tuple(mine if d == self.dim else (0, n) for d, n in enumerate(shape))


Placement = Replicated | Split | Partial
Layout = tuple[Placement, ...]
"""One placement per mesh axis. Where two axes split the same dimension, the later one divides every
part that the earlier one made, and its bounds are those of all these parts, one after another."""


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


def split_within(outer: Layout, dim: int, length: int, divide: Callable[[int], Bounds]) -> Split:
    """Split a dimension along the axis behind those of `outer`, which may split it already.

    Each part that they leave is divided anew: `divide` gives the bounds for a part's length.
    """
    for placement in reversed(outer):
        if isinstance(placement, Split) and placement.dim == dim:
            parts = pairwise(placement.bounds)
            inner = (lo + end for lo, hi in parts for end in divide(hi - lo)[1:])
            return Split(dim, (0, *inner))
    return Split(dim, divide(length))


def seen(layout: Layout, axis: int, coords: Sequence[int]) -> Placement:
    """Return the placement along an axis as the ranks at `coords` of the earlier axes see it.

    Bounds count from the beginning of the part that the earlier axes leave them.
    """
    placement = layout[axis]
    if not isinstance(placement, Split):
        return placement
    first, ranks = _parts(layout[:axis], placement, coords)
    if ranks == len(placement.bounds) - 1:
        return placement
    bounds = placement.bounds[first : first + ranks + 1]
    return Split(placement.dim, tuple(end - bounds[0] for end in bounds))


def _parts(outer: Layout, split: Split, coords: Sequence[int]) -> tuple[int, int]:
    """Return which of a split's parts is the first of those left at `coords`, and how many are."""
    part, parts = 0, 1
    for placement, rank in zip(outer, coords, strict=False):
        if isinstance(placement, Split) and placement.dim == split.dim:
            finer = len(placement.bounds) - 1
            part, parts = part * (finer // parts) + rank, finer
    ranks = (len(split.bounds) - 1) // parts
    return part * ranks, ranks


def region(shape: Shape, layout: Layout, coords: Sequence[int]) -> Box:
    """Return the range of every dimension of the whole tensor that lies at mesh `coords`."""
    box = [(0, n) for n in shape]
    for axis, placement in enumerate(layout):
        if isinstance(placement, Split):
            first = _parts(layout[:axis], placement, coords)[0] if axis else 0
            box[placement.dim] = placement.range(shape[placement.dim], first + coords[axis])
    return tuple(box)


def ranges(shape: Shape, layout: Layout, grid: Sequence[int], dim: int) -> Ranges:
    """Return the range of a dimension that each place of the grid holds: int64 (2, *grid).

    Along axes that do not split it the array may have length 1.
    """
    ends: Any = 0, shape[dim]
    sizes = [1] * len(grid)
    for axis, placement in enumerate(layout):
        if isinstance(placement, Split) and placement.dim == dim:
            sizes[axis] = grid[axis]
            ends = placement.ends
    return np.reshape(ends, (2, *sizes))


def counts_here(layout: Layout, coords: Sequence[int]) -> bool:
    """Say whether a sum over all ranks that takes every part once takes it at mesh `coords`.

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
    return tuple([hi - lo for lo, hi in box])


def volume(box: Box) -> int:
    """Return the number of items in a box."""
    return prod(box_shape(box))


def local_shape(shape: Shape, layout: Layout, coords: Sequence[int]) -> Shape:
    """Return the shape of the block that lies at mesh `coords`."""
    return box_shape(region(shape, layout, coords))


def largest(shape: Shape, layout: Layout) -> Shape:
    """Return the most of each dimension that lies at any place."""
    found = list(shape)
    for placement in layout:
        if isinstance(placement, Split):
            lo, hi = placement.ends
            found[placement.dim] = int((hi - lo).max())
    return tuple(found)


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
