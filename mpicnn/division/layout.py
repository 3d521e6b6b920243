"""Where the tensors of a plan lie at one place of the mesh, and the hops between two layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpicnn.division.move import Move
from mpicnn.division.operations import Hop
from mpicnn.division.placement import (
    Bounds,
    Layout,
    Partial,
    Placement,
    Replicated,
    Shape,
    Split,
    local_shape,
    on_first,
    on_rank,
    weighted_bounds,
)
from mpicnn.division.plan import Plan
from mpicnn.division.program import WeightLayout
from mpicnn.division.propagation import LayerDivision
from mpicnn.division.strategy import CHANNEL, Row
from mpicnn.layers.base import Param


@dataclass(frozen=True)
class Site:
    """Find layouts and routes for one place of a plan's mesh.

    Along an axis of one rank every tensor is replicated, whatever the plan says.
    """

    plan: Plan
    coords: tuple[int, ...]

    def input_layout(self, shape: Shape, division: LayerDivision) -> Layout:
        """Return how a layer wants its input of whole `shape`.

        Raises ValueError where there are fewer channels than ranks that share them.
        """
        placements: list[Placement] = []
        for axis, row in enumerate(division.rows):
            extent = self._left(shape, placements)
            placements.append(self._place(extent, row, row.x, division.shares[axis], axis))
        return tuple(placements)

    def output_layout(self, x: Layout, y_shape: Shape, division: LayerDivision) -> Layout:
        """Return the layout of a layer's output, given that of its input.

        Raises ValueError where there are fewer channels than ranks that share them.
        """
        placements: list[Placement] = []
        for axis, row in enumerate(division.rows):
            extent = self._left(y_shape, placements)
            placement = x[axis]
            if row.total and self.plan.grid[axis] > 1:
                placement = Partial()
            elif row.y != row.x:
                placement = self._place(extent, row, row.y, division.shares[axis], axis)
            elif isinstance(placement, Split) and placement.dim == CHANNEL:
                placement = Split(CHANNEL, _scaled(placement.bounds, extent[CHANNEL]))
            placements.append(placement)
        return tuple(placements)

    def _place(
        self, extent: Shape, row: Row, dim: int | None, shares: Sequence[float], axis: int
    ) -> Placement:
        if dim is None or self.plan.grid[axis] == 1:
            return Replicated()
        if row.alone:
            return Split(dim, on_rank(extent[dim], self.plan.grid[axis], row.owner))
        return Split(dim, weighted_bounds(extent[dim], shares, row.least))

    def _left(self, shape: Shape, outer: Sequence[Placement]) -> Shape:
        """Return what the first axes leave here of a whole `shape`: what the next one divides."""
        return local_shape(shape, tuple(outer), self.coords[: len(outer)])

    def weight(
        self, full: str, param: Param, division: LayerDivision, x: Layout, y: Layout, buffer: bool
    ) -> WeightLayout:
        """Return where a parameter or buffer lives and is used, and its routes in between.

        `x` and `y` are the layouts of the layer's input and output: a weight is divided as the
        channels are that it belongs to. What no gradient changes lives where it is used.
        """
        vector = len(param.shape) == 1
        held: list[Placement] = []
        use: list[Placement] = []
        for axis, row in enumerate(division.rows):
            if vector and row.total and self.plan.grid[axis] > 1:
                # every rank has a summand of y: the first adds the bias, the others zeros. It lives
                # there alone: computed twice, on unlike devices, it would drift apart
                extent = self._left(param.shape, held)
                held.append(Split(0, on_first(extent[0], self.plan.grid[axis])))
                use.append(Partial())
                continue
            channels = x[axis] if row.x == CHANNEL else y[axis]
            for layout in (held, use):
                extent = self._left(param.shape, layout)
                layout.append(self._hold(row, axis, vector, extent, channels))
        stays = buffer or division.frozen
        home = tuple(held) if stays else self._home(param.shape, tuple(held), division.home)
        fetch = self.route(param.shape, home, tuple(use))
        bring = self.route(param.shape, tuple(p.dual for p in use), home)
        return WeightLayout(full, param, home, tuple(use), fetch, bring, buffer, division.frozen)

    def _hold(
        self, row: Row, axis: int, vector: bool, extent: Shape, channels: Placement
    ) -> Placement:
        """Return how a weight lies along one axis, whose channels lie as `channels`."""
        if row.w is None or self.plan.grid[axis] == 1:
            return Replicated()
        dim = 0 if vector else row.w
        if row.alone:
            return Split(dim, on_rank(extent[dim], self.plan.grid[axis], row.owner))
        if not isinstance(channels, Split):
            return Replicated()
        # nothing is left where an outer axis keeps the layer on its first rank
        return Split(dim, channels.bounds if extent[dim] else (0,) * len(channels.bounds))

    def _home(self, shape: Shape, held: Layout, home: str) -> Layout:
        """Return where a weight that changes lives between steps; it is computed with as `held`."""
        if home == "first" and self.plan.grid[-1] > 1:
            rows = self._left(shape, held[:-1])[0]
            return (*held[:-1], Split(0, on_first(rows, self.plan.grid[-1])))
        if self.plan.sync == "sharded":
            return self._sharded(shape, held)
        return held

    def _sharded(self, shape: Shape, held: Layout) -> Layout:
        """Divide equally on every axis on which all ranks hold the same.

        The dimension is the first that `held` leaves whole; where there is none, as for a bias
        whose channels another axis divides, all ranks go on to hold the same.
        """
        taken = {p.dim for p in held if isinstance(p, Split)}
        free = next((d for d in range(len(shape)) if d not in taken), None)
        home: list[Placement] = []
        for axis, placement in enumerate(held):
            ranks = self.plan.grid[axis]
            if isinstance(placement, Replicated) and free is not None and ranks > 1:
                extent = self._left(shape, home)
                placement = Split(free, weighted_bounds(extent[free], (1.0,) * ranks))
            home.append(placement)
        return tuple(home)

    def route(self, shape: Shape, src: Layout, dst: Layout) -> tuple[Hop, ...]:
        """Return the hops that carry a tensor of whole `shape` from one layout to another.

        An inner axis's bounds count from what the outer axis leaves. So where both axes divide one
        dimension, the inner one is undone before the outer one changes, and made afterwards.
        """
        now = list(src)
        hops = []
        for axis, placement in _order(src, dst):
            if now[axis] != placement and self.plan.grid[axis] > 1:
                others = tuple(Replicated() if a == axis else p for a, p in enumerate(now))
                seen = local_shape(shape, others, self.coords)
                hops.append(Hop(axis, Move(now[axis], placement), seen))
            now[axis] = placement
        return tuple(hops)


def _order(src: Layout, dst: Layout) -> list[tuple[int, Placement]]:
    """Return which axis takes which placement, one after another, on the way from src to dst."""
    if len(src) == 1:
        return [(0, dst[0])]
    outer, inner = (0, dst[0]), (1, dst[1])
    if src[0] == dst[0]:
        return [inner]
    changing = {p.dim for p in (src[0], dst[0]) if isinstance(p, Split)}
    if not _splits(dst[1], changing):
        return [inner, outer]
    if not _splits(src[1], changing):
        return [outer, inner]
    return [(1, Replicated()), outer, inner]


def _splits(placement: Placement, dims: set[int]) -> bool:
    return isinstance(placement, Split) and placement.dim in dims


def _scaled(bounds: Bounds, length: int) -> Bounds:
    """Return channel bounds where every channel has become `length / bounds[-1]` features."""
    each = length // max(1, bounds[-1])
    return tuple(b * each for b in bounds)
