"""Where the tensors of a plan lie at one place of the mesh, and how they get elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpicnn.division.move import Move
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
    weighted_bounds,
)
from mpicnn.division.plan import Plan
from mpicnn.division.program import Hop, WeightLayout
from mpicnn.division.propagation import Choice
from mpicnn.division.strategy import CHANNEL, Row
from mpicnn.errors import UserError
from mpicnn.layers.base import Param


@dataclass(frozen=True)
class Site:
    """A place in a plan's mesh: what layouts and routes depend on."""

    plan: Plan
    coords: tuple[int, ...]

    def layout(
        self, shape: Shape, choice: Choice, rows: dict[str, Row], role: str, least: int
    ) -> Layout:
        """Return how a tensor of a layer lies: its role's dimension divided on every axis."""
        extent = shape
        placements: list[Placement] = []
        for axis, letter in enumerate(choice.split):
            placement = self._place(extent, rows[letter], role, choice.shares[axis], axis, least)
            extent = tuple(hi - lo for lo, hi in placement.box(extent, self.coords[axis]))
            placements.append(placement)
        return tuple(placements)

    def _place(
        self, extent: Shape, rule: Row, role: str, shares: Sequence[float], axis: int, least: int
    ) -> Placement:
        dim: int | None = getattr(rule, role)
        if dim is None:
            return Partial() if rule.total and role == "y" else Replicated()
        if rule.alone:
            return Split(dim, on_first(extent[dim], self.plan.grid[axis]))
        return Split(dim, weighted_bounds(extent[dim], shares, least))

    def leave(self, x: Layout, y_shape: Shape, choice: Choice, rows: dict[str, Row]) -> Layout:
        """Return the layout of a layer's output, given that of its input."""
        after: list[Placement] = []
        extent = y_shape
        for axis, letter in enumerate(choice.split):
            rule = rows[letter]
            placement = x[axis]
            if rule.y != rule.x or rule.total:
                placement = self._place(extent, rule, "y", choice.shares[axis], axis, least=1)
            elif isinstance(placement, Split) and placement.dim == CHANNEL:
                placement = Split(CHANNEL, _scaled(placement.bounds, y_shape[1]))
            extent = tuple(hi - lo for lo, hi in placement.box(extent, self.coords[axis]))
            after.append(placement)
        return tuple(after)

    def route(self, shape: Shape, src: Layout, dst: Layout) -> tuple[Hop, ...]:
        """Return the hops that carry a tensor of whole `shape` from one layout to another.

        Axes that divide the same dimension are undone from the inner one and made from the outer.
        """
        axes = range(len(src))
        now = list(src)
        hops = []
        for axis in axes if _nested(dst) else reversed(axes):
            if now[axis] == dst[axis] or self.plan.grid[axis] == 1:
                now[axis] = dst[axis]
                continue
            others = tuple(Replicated() if a == axis else p for a, p in enumerate(now))
            seen = local_shape(shape, others, self.coords)
            hops.append(Hop(axis, Move(now[axis], dst[axis]), seen))
            now[axis] = dst[axis]
        return tuple(hops)

    def weight(
        self, full: str, param: Param, choice: Choice, rows: dict[str, Row], buffer: bool
    ) -> WeightLayout:
        """Return where a parameter or buffer lives and is used, and its ways in between.

        Raises UserError where there are too few rows for the ranks that share it.
        """
        vectors = {a: replace(r, w=0) if r.total else r for a, r in rows.items()}
        try:
            held = self.layout(param.shape, choice, vectors if len(param.shape) == 1 else rows,
                               "w", least=1)  # fmt: skip
        except ValueError as error:
            raise UserError(
                f"plan: {full} of shape {param.shape} cannot be shared: {error}; "
                "give the ranks that shall stay idle a share of 0"
            ) from None
        use = held
        if len(param.shape) == 1:
            use = tuple(
                Partial() if rows[letter].total else p
                for p, letter in zip(held, choice.split, strict=True)
            )
        home = held
        if choice.home == "first" and not buffer:
            home = tuple(Split(0, on_first(param.shape[0], k)) for k in self.plan.grid[-1:])
            home = held[:-1] + home
        elif self.plan.sync == "sharded" and not buffer:
            home = self._sharded(param.shape, held)
        fetch = self.route(param.shape, home, use)
        bring = self.route(param.shape, tuple(p.dual for p in use), home)
        return WeightLayout(full, param, home, use, fetch, bring, buffer)

    def _sharded(self, shape: Shape, held: Layout) -> Layout:
        """Divide equally on every axis on which all ranks hold the same.

        The dimension is the first that `held` leaves whole; where there is none, as for a bias
        whose channels another axis divides, all ranks go on to hold the same.
        """
        taken = {p.dim for p in held if isinstance(p, Split)}
        free = next((d for d in range(len(shape)) if d not in taken), None)
        extent = shape
        home: list[Placement] = []
        for axis, placement in enumerate(held):
            if isinstance(placement, Replicated) and free is not None:
                equal = (1.0,) * self.plan.grid[axis]
                placement = Split(free, weighted_bounds(extent[free], equal))
            extent = tuple(hi - lo for lo, hi in placement.box(extent, self.coords[axis]))
            home.append(placement)
        return tuple(home)


def _nested(layout: Layout) -> bool:
    dims = [p.dim for p in layout if isinstance(p, Split)]
    return len(dims) > len(set(dims))


def _scaled(bounds: Bounds, length: int) -> Bounds:
    """Return channel bounds where every channel has become `length / bounds[-1]` features."""
    each = length // max(1, bounds[-1])
    return tuple(b * each for b in bounds)
