"""Redistributions of a tensor along one mesh axis: the table, its adjoint, its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from mpicnn.division.placement import (
    Partial,
    Placement,
    Replicated,
    Shape,
    Split,
    are_rows,
    intersect,
    volume,
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
        divided = next((p for p in (self.src, self.dst) if isinstance(p, Split)), None)
        if self.local or divided is None:
            return False, False
        ranks = range(len(divided.bounds) - 1)
        mine, goal = self.src.box(shape, rank), self.dst.box(shape, rank)
        outgoing = [intersect(mine, self.dst.box(shape, r)) for r in ranks]
        incoming = [intersect(self.src.box(shape, r), goal) for r in ranks]
        gathers, scatters = (not isinstance(p, Split) for p in (self.dst, self.src))
        return not gathers and not are_rows(outgoing, mine), (
            not scatters and not are_rows(incoming, goal)
        )

    def items_sent(self, shape: Shape, ranks: int, rank: int) -> float:
        """Return the number of items that `rank` sends to other ranks.

        A rank that contributes a block to k others counts it k times; a sum over K ranks of n
        items counts 2 (K - 1) / K · n (reduce-scatter, then all-gather of equal parts). This is
        the least any algorithm sends; `mpicnn.comm.mesh.Group` counts real calls by the same rule.
        """
        if self.local or ranks == 1:
            return 0
        if isinstance(self.src, Partial):
            whole = prod(shape)
            if isinstance(self.dst, Replicated):
                return 2 * (ranks - 1) / ranks * whole
            return whole - volume(self.dst.box(shape, rank))
        mine = self.src.box(shape, rank)
        return sum(
            volume(intersect(mine, self.dst.box(shape, r))) for r in range(ranks) if r != rank
        )


SUM = Move(Partial(), Replicated())
"""The all-reduce: a pending sum becomes known to every rank."""
