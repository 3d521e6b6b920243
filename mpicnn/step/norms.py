"""Norms of whole tensors, of which every rank holds parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mpicnn.division.placement import counts_here
from mpicnn.division.program import WeightLayout
from mpicnn.ops.interface import Array, Backend

Total = Callable[[Array], Array]
"""Sum a small array over all ranks of a run; all of them call it at the same point."""


@dataclass(frozen=True)
class Norms:
    """Say of which tensors norms are taken, and which of this rank's parts count.

    `names` are the parameters of the whole network, all stages, in an order that all ranks share.
    A part that several ranks hold is `counted` by one of them.
    """

    names: tuple[str, ...]
    counted: frozenset[str]

    @classmethod
    def of(
        cls, names: Iterable[str], weights: Iterable[WeightLayout], coords: Sequence[int]
    ) -> Norms:
        """Return those of the parameters `names` for the rank at `coords` with these weights."""
        counted = (w.name for w in weights if counts_here(w.home, coords))
        return cls(tuple(names), frozenset(counted))

    def take(
        self, ops: Backend, kinds: Sequence[Mapping[str, Array]], total: Total
    ) -> list[dict[str, float]]:
        """Return the norms of tensors of some kinds by name, 0 for those that are not given.

        However many kinds there are, ranks sum once.
        """
        squares = np.zeros((len(kinds), len(self.names)))
        places = {name: at for at, name in enumerate(self.names)}
        found = [
            (row, places[name], array)
            for row, arrays in enumerate(kinds)
            for name, array in arrays.items()
            if name in self.counted
        ]
        values = square_sums(ops, [array for *_, array in found])
        for (row, column, _), value in zip(found, values, strict=True):
            squares[row, column] = value
        whole = np.sqrt(total(squares))
        return [dict(zip(self.names, row.tolist(), strict=True)) for row in whole]


def square_sums(ops: Backend, arrays: Sequence[Array]) -> Array:
    """Return the sum of squares of every array: float64 (n,) in host memory."""
    if not arrays:
        return np.zeros(0)
    rows = (array if array.ndim > 1 else array[None] for array in arrays)
    sums = [ops.channel_sums(row, row).sum(dtype=np.float64) for row in rows]
    return ops.fetch(ops.xp.stack(sums))()
