"""The rounds of the head, and the order of micro-batches in a pipeline stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.placement import (
    Layout,
    Placement,
    Replicated,
    Shape,
    Split,
    region,
    weighted_bounds,
)
from mpicnn.division.plan import Plan
from mpicnn.division.propagation import LayerDivision
from mpicnn.errors import UserError


def turns(order: str, depth: int, stage: int, count: int) -> Iterator[tuple[str, int]]:
    """Yield what stage `stage` of `depth` does with `count` micro-batches: ("F" | "B", index).

    "gpipe" (Huang et al. 2019) goes forward with all of them, then backward. "1f1b" (PipeDream,
    Narayanan et al. 2019, with one update per batch) begins to go backward as soon as it can, so
    that a stage holds the activations of `depth - stage` micro-batches at most. Gradients are
    summed in the same order either way.
    """
    ahead = count if order == "gpipe" else min(count, depth - stage - 1)
    for index in range(ahead):
        yield "F", index
    for index in range(count):
        if ahead + index < count:
            yield "F", ahead + index
        yield "B", index


@dataclass(frozen=True)
class Part:
    """Describe one round's examples.

    `rows` index this rank's block of the body's output, `positions` are the places in the global
    batch of all the round's examples in the order in which the ranks hold them, and `entry` is
    how they lie.
    """

    rows: slice
    positions: NDArray[np.int64]
    entry: Layout


def parts(
    plan: Plan, division: LayerDivision, layout: Layout, shape: Shape, coords: tuple[int, ...]
) -> list[Part]:
    """Divide the body's output (`shape`, lying as `layout` by `division`) into the scheme's rounds.

    (a) is one round over everything. With K ranks on the last mesh axis, (b) has K rounds, round
    k on rank k's examples; (c) has K rounds, each on a K-th of every rank's examples (OWT).
    Rounds without examples are left out.
    Raises UserError where the batch is not what every axis divides.
    """
    if plan.scheme == "a":
        lo, hi = region(shape, layout, coords)[0]
        return [Part(slice(0, hi - lo), np.arange(shape[0]), layout)]
    if not all(row.shares_batch for row in division.rows):
        raise UserError(
            f"plan: scheme ({plan.scheme}) needs the layers before the fully connected ones "
            "divided by the batch; use split n for them or scheme a"
        )
    held = {place: _held(shape[0], division, place) for place in np.ndindex(*plan.grid)}
    rounds = [_part(plan, held, coords, k) for k in range(plan.grid[-1])]
    return [part for part in rounds if part.positions.size]


def _held(count: int, division: LayerDivision, place: tuple[int, ...]) -> tuple[int, int]:
    """Return the range of the batch that lies at `place`."""
    start, stop = 0, count
    for rank, shares in zip(place, division.shares, strict=True):
        bounds = weighted_bounds(stop - start, shares)
        start, stop = start + bounds[rank], start + bounds[rank + 1]
    return start, stop


def _part(
    plan: Plan, held: dict[tuple[int, ...], tuple[int, int]], coords: tuple[int, ...], k: int
) -> Part:
    sizes = np.zeros(plan.grid, dtype=np.int64)
    positions = []
    rows = slice(0, 0)
    for place, (start, stop) in held.items():
        lo, hi = _rows(plan, stop - start, place[-1], k)
        sizes[place] = hi - lo
        positions.append(np.arange(start + lo, start + hi))
        if place == coords:
            rows = slice(lo, hi)
    entry: list[Placement] = []
    for axis in range(len(plan.grid)):
        within = sizes[coords[:axis]]
        totals = within.reshape(within.shape[0], -1).sum(axis=1)
        bounds = (0, *accumulate(int(n) for n in totals))
        entry.append(Split(0, bounds) if plan.grid[axis] > 1 else Replicated())
    return Part(rows, np.concatenate(positions), tuple(entry))


def _rows(plan: Plan, rows: int, rank: int, k: int) -> tuple[int, int]:
    """Return the local rows of a rank that round `k` works on."""
    if plan.scheme == "b":
        return (0, rows) if rank == k else (0, 0)
    bounds = weighted_bounds(rows, (1.0,) * plan.grid[-1])
    return bounds[k], bounds[k + 1]
