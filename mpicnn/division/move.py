"""Redistributions of a tensor along one mesh axis: the table, its adjoint, its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.placement import (
    Layout,
    Partial,
    Placement,
    Replicated,
    Shape,
    Split,
    local_shape,
    ranges,
    seen,
)


@dataclass(frozen=True)
class Move:
    """Carry a tensor from placement `src` to placement `dst` along one mesh axis.

    The tensor stays the same; where its parts lie changes. As a linear map on the ranks' local
    arrays, its adjoint is the Move between the dual placements in the other direction, so the
    backward pass of every collective is a collective of the same table.
    """

    src: Placement
    dst: Placement

    @cached_property
    def adjoint(self) -> Move:
        """Return the Move that carries gradients back."""
        return Move(self.dst.dual, self.src.dual)

    @property
    def local(self) -> bool:
        """Say whether no rank needs anything from another."""
        return (
            not isinstance(self.src, Split | Partial)
            or self.src == self.dst
            or (isinstance(self.src, Split) and isinstance(self.dst, Partial))
        )

    @property
    def lends(self) -> bool:
        """Say whether the local array may be read until the move has ended."""
        return not self.local and self.collective != "all-reduce"  # a sum is made in a copy

    @cached_property
    def collective(self) -> str:
        """Return what MPI calls it."""
        if self.local:
            return "local copy"
        if isinstance(self.dst, Split):
            return "reduce-scatter" if isinstance(self.src, Partial) else "all-to-all"
        return "all-reduce" if isinstance(self.src, Partial) else "all-gather"

    def packed(self, shape: Shape, rank: int) -> tuple[bool, bool]:
        """Say whether a rank's part is copied to be sent, and what arrives is copied to its place.

        Messages are flat: what does not lie in memory as it is sent is rearranged.
        """
        if self.local:
            return False, False
        mine, goal = self.src.box(shape, rank), self.dst.box(shape, rank)
        return (
            isinstance(self.dst, Split) and not self.dst.cuts_rows(mine),
            isinstance(self.src, Split) and not self.src.cuts_rows(goal),
        )

    def items_sent(self, shape: Shape, ranks: int) -> NDArray[np.float64]:
        """Return the number of items that every rank sends to other ranks: (ranks,).

        A rank that contributes a block to k others counts it k times. This is the least any
        algorithm sends; `mpicnn.comm.mesh.Group` counts real calls by the same rule.
        """
        if self.local or ranks == 1:
            return np.zeros(ranks)
        if isinstance(self.src, Partial) and isinstance(self.dst, Replicated):
            return np.full(ranks, sum_sent(prod(shape), ranks))
        mine = common = np.ones(ranks)
        for dim in range(len(shape)):
            (lo, hi), (start, stop) = (
                ranges(shape, (placement,), (ranks,), dim) for placement in (self.src, self.dst)
            )
            mine = mine * (hi - lo)
            common = common * np.maximum(0, np.minimum(hi, stop) - np.maximum(lo, start))
        if isinstance(self.dst, Replicated):
            return (ranks - 1) * mine
        # a split's parts are the whole tensor: what a rank does not keep goes to one other
        return mine - common


def sum_sent(items: float, ranks: int) -> float:
    """Return what each rank sends in a sum of `items`: reduce-scatter, then all-gather of parts."""
    return 2 * (ranks - 1) / ranks * items


SUM = Move(Partial(), Replicated())
"""The all-reduce: a pending sum becomes known to every rank."""


class Hop(NamedTuple):
    """Describe one Move along one mesh axis of a tensor of whole `shape`.

    `others` is how it lies along the other axes. As one rank sees it, `shape` is whole in what the
    axis splits and local in what others split.
    """

    axis: int
    move: Move
    shape: Shape
    others: Layout

    @property
    def keeps(self) -> bool:
        """Say whether on some rank what arrives may be a view of what set out."""
        src, dst = self.move.src, self.move.dst
        # along a second axis two splits of a dimension may be the same on some ranks
        alike = isinstance(src, Split) and isinstance(dst, Split) and src.dim == dst.dim
        return self.move.local or (alike and len(self.others) > 1)

    @property
    def adjoint(self) -> Hop:
        """Return the hop that carries gradients back."""
        return self._replace(
            move=self.move.adjoint, others=tuple(placement.dual for placement in self.others)
        )

    def detail(self, back: bool) -> str:
        """Return the collective and the direction in words."""
        return f"{self.move.collective}, {direction(back)}"

    def layout(self, after: bool) -> Layout:
        """Return how the tensor lies before the hop, or after it."""
        here = self.move.dst if after else self.move.src
        return (*self.others[: self.axis], here, *self.others[self.axis + 1 :])

    def at(self, coords: Sequence[int]) -> Hop:
        """Return the hop as the ranks along its axis see it."""
        if len(self.others) == 1:
            return self
        src, dst = (seen(self.layout(after), self.axis, coords) for after in (False, True))
        return self._replace(
            move=Move(src, dst), shape=local_shape(self.shape, self.others, coords)
        )


def direction(back: bool) -> str:
    """Return which way something travels in words."""
    return "backward" if back else "forward"
