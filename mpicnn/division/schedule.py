"""The rounds of the head, and the order of micro-batches in a pipeline stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.placement import (
    Layout,
    Ranges,
    Replicated,
    Split,
    ranges,
    weighted_bounds,
)
from mpicnn.division.plan import Plan
from mpicnn.division.propagation import LayerDivision
from mpicnn.division.strategy import BATCH
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


class Part(NamedTuple):
    """Describe one round's examples.

    `rows` are the ranges of them in every rank's block of the body's output, `positions` their
    places in the batch in the order in which the ranks hold them, and `entry` is how they lie.
    """

    rows: Ranges
    positions: NDArray[np.int64]
    entry: Layout


def parts(plan: Plan, division: LayerDivision, layout: Layout, count: int) -> list[Part]:
    """Divide the body's output (`count` examples, lying as `layout`) into the scheme's rounds.

    (a) is one round over everything. With K ranks on the last mesh axis, (b) has K rounds, round
    k on rank k's examples; (c) has K rounds, each on a K-th of every rank's examples (OWT).
    Rounds without examples are left out.
    Raises UserError where the batch is not what every axis divides.
    """
    held = np.zeros((2, *plan.grid), np.int64) + ranges((count,), layout, plan.grid, BATCH)
    starts, rows = held[0], held[1] - held[0]
    if plan.scheme == "a":
        return [Part(np.stack([0 * rows, rows]), np.arange(count), layout)]
    if not all(row.shares_batch for row in division.rows):
        raise UserError(
            f"plan {plan.name}: scheme ({plan.scheme}) needs the layers before the fully connected "
            "ones divided by the batch; use split n for them or scheme a"
        )
    each = _by_round(plan, rows)
    found = (_part(plan.grid, starts, each[..., k : k + 2]) for k in range(plan.grid[-1]))
    return [part for part in found if part.positions.size]


def _by_round(plan: Plan, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bounds of the rounds in every rank's `rows`: int64 (*grid, rounds + 1)."""
    rounds = plan.grid[-1]
    if plan.scheme == "b":
        return rows[..., None] * np.triu(np.ones((rounds, rounds + 1), np.int64), 1)
    bounds = {n: weighted_bounds(n, (1.0,) * rounds) for n in set(rows.ravel().tolist())}
    return np.array([bounds[n] for n in rows.ravel().tolist()]).reshape(*plan.grid, rounds + 1)


def _part(grid: Sequence[int], starts: NDArray[np.int64], bounds: NDArray[np.int64]) -> Part:
    """Return the round of those rows of every rank that lie between two `bounds`."""
    rows = np.moveaxis(bounds, -1, 0)
    sizes = rows[1] - rows[0]
    ends = sizes.cumsum()
    # from each example's place in the round to its place in the batch
    shifts = np.repeat((starts + rows[0]).ravel() - ends + sizes.ravel(), sizes.ravel())
    entry: Layout = ()
    for axis, ranks in enumerate(grid):
        totals = sizes.reshape(*grid[: axis + 1], -1).sum(axis=-1)
        divided = Split(BATCH, (0, *totals.cumsum().tolist()))
        entry += (divided if ranks > 1 else Replicated(),)
    return Part(rows, np.arange(shifts.size) + shifts, entry)
