"""Where the tensors of a plan lie, and the hops between two layouts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mpicnn.division.move import Hop, Move
from mpicnn.division.placement import (
    Bounds,
    Layout,
    Partial,
    Placement,
    Replicated,
    Shape,
    Split,
    on_first,
    on_rank,
    split_within,
    weighted_bounds,
)
from mpicnn.division.plan import Plan, Shares
from mpicnn.division.program import WeightLayout
from mpicnn.division.propagation import LayerDivision
from mpicnn.division.strategy import CHANNEL, IN, Row
from mpicnn.layers.base import Param


class Layouts:
    """Find the layouts of a plan's tensors, and the routes between them.

    Along an axis of one rank every tensor is replicated, whatever the plan says.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def input_layout(self, shape: Shape, division: LayerDivision) -> Layout:
        """Return how a layer wants its input of whole `shape`.

        Raises ValueError where there are fewer channels than ranks that share them.
        """
        found: Layout = ()
        for row, shares in zip(division.rows, division.shares, strict=True):
            found += (self._place(shape, row, row.x, shares, found, division.groups),)
        return found

    def output_layout(self, x: Layout, y_shape: Shape, division: LayerDivision) -> Layout:
        """Return the layout of a layer's output, given that of its input.

        Raises ValueError where there are fewer channels than ranks that share them.
        """
        found: Layout = ()
        for axis, (row, shares) in enumerate(zip(division.rows, division.shares, strict=True)):
            placement = x[axis]
            if row.total and self.plan.grid[axis] > 1:
                placement = Partial()
            elif row.y != row.x:
                placement = self._place(y_shape, row, row.y, shares, found, division.groups)
            elif isinstance(placement, Split) and placement.dim == CHANNEL:
                placement = Split(CHANNEL, _scaled(placement.bounds, y_shape[CHANNEL]))
            found += (placement,)
        return found

    def _place(
        self,
        shape: Shape,
        row: Row,
        dim: int | None,
        shares: Shares,
        outer: Layout,
        groups: int = 1,
    ) -> Placement:
        """Return how a row places a tensor along the axis behind those of `outer`."""
        ranks = self.plan.grid[len(outer)]
        if dim is None or ranks == 1:
            return Replicated()
        if row.alone:
            divide: Callable[[int], Bounds] = partial(on_rank, ranks=ranks, owner=row.owner)
        elif row.grouped:
            whole = weighted_bounds(groups, shares, row.least)
            divide = partial(_scaled, whole)
        else:
            divide = partial(weighted_bounds, weights=shares, least=row.least)
        return split_within(outer, dim, shape[dim], divide)

    def weight(
        self, full: str, param: Param, division: LayerDivision, x: Layout, y: Layout, buffer: bool
    ) -> WeightLayout:
        """Return where a parameter or buffer lives and is used, and its routes in between.

        `x` and `y` are the layouts of the layer's input and output: a weight is divided as the
        channels are that it belongs to. What no gradient changes lives where it is used.
        """
        vector = len(param.shape) == 1
        held: Layout = ()
        use: Layout = ()
        for axis, row in enumerate(division.rows):
            ranks = self.plan.grid[axis]
            if vector and row.total and ranks > 1:
                # every rank has a summand of y: the first adds the bias, the others zeros. It lives
                # there alone: computed twice, on unlike devices, it would drift apart
                held += (split_within(held, 0, param.shape[0], partial(on_first, ranks=ranks)),)
                use += (Partial(),)
                continue
            channels = x[axis] if row.w == IN else y[axis]
            dim = 0 if vector else row.w
            held += (self._hold(row, dim, param.shape, held, channels),)
            use += (self._hold(row, dim, param.shape, use, channels),)
        stays = buffer or division.frozen
        home = held if stays else self._home(param.shape, held, division.home)
        fetch = self.route(param.shape, home, use)
        bring = self.route(param.shape, tuple(p.dual for p in use), home)
        return WeightLayout(full, param, home, use, fetch, bring, buffer, division.frozen)

    def _hold(
        self, row: Row, dim: int | None, shape: Shape, outer: Layout, channels: Placement
    ) -> Placement:
        """Return how a weight lies along the axis behind `outer`, its channels as `channels`."""
        if row.w is None or row.alone:
            return self._place(shape, row, None if row.w is None else dim, (), outer)
        if dim is None or not isinstance(channels, Split):
            return Replicated()
        bounds, none = channels.bounds, (0,) * len(channels.bounds)
        if len(bounds) > self.plan.grid[len(outer)] + 1:
            return Split(dim, bounds)
        # nothing is left where an outer axis keeps the layer on its first rank
        return split_within(outer, dim, shape[dim], lambda left: bounds if left else none)

    def _home(self, shape: Shape, held: Layout, home: str) -> Layout:
        """Return where a weight that changes lives between steps; it is computed with as `held`."""
        if home == "first" and self.plan.grid[-1] > 1:
            first = partial(on_first, ranks=self.plan.grid[-1])
            return (*held[:-1], split_within(held[:-1], 0, shape[0], first))
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
        home: Layout = ()
        for placement, ranks in zip(held, self.plan.grid, strict=True):
            if isinstance(placement, Replicated) and free is not None and ranks > 1:
                equally = partial(weighted_bounds, weights=(1.0,) * ranks)
                placement = split_within(home, free, shape[free], equally)
            home += (placement,)
        return home

    def route(self, shape: Shape, src: Layout, dst: Layout) -> tuple[Hop, ...]:
        """Return the hops that carry a tensor of whole `shape` from one layout to another.

        An inner axis divides what the outer axis leaves. So where both axes divide one dimension,
        the inner one is undone before the outer one changes, and made afterwards.
        """
        if src == dst:
            return ()
        now = list(src)
        hops = []
        for axis, placement in _order(src, dst):
            if now[axis] != placement and self.plan.grid[axis] > 1:
                others = tuple(Replicated() if a == axis else p for a, p in enumerate(now))
                hops.append(Hop(axis, Move(now[axis], placement), shape, others))
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
    """Return bounds where all of it has another length: of every part as many times more or less.

    So a channel becomes its features (flatten), a group its channels.
    """
    whole = bounds[-1]
    return bounds if whole in (0, length) else tuple(b * length // whole for b in bounds)
