"""Turn a network, a plan and a place in the mesh into the program of one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.errors import UserError
from mpicnn.layers.base import Layer, Param
from mpicnn.move import Move
from mpicnn.placement import (
    Bounds,
    Layout,
    Partial,
    Placement,
    Replicated,
    Shape,
    Split,
    local_shape,
    on_first,
    region,
    weighted_bounds,
)
from mpicnn.plan import INPUT, LOSS, Choice, Plan, resolve
from mpicnn.program import (
    Chain,
    Compute,
    Hop,
    Positions,
    Program,
    Redistribute,
    Round,
    Step,
    Weight,
)
from mpicnn.schedule import parts
from mpicnn.strategy import BATCH, CHANNEL, Row, row

if TYPE_CHECKING:
    from mpicnn.models import Model


def compile(model: Model, plan: Plan, coords: Sequence[int], count: int) -> Program:
    """Return the program of the rank at mesh `coords` for a global batch of `count` examples.

    Pure: the same on every rank and without MPI, so that prediction and simulation can look at
    all ranks. Raises UserError where the plan does not fit the network.
    """
    build = _Builder(model, plan, tuple(coords), resolve(model, plan))
    whole = np.arange(count)
    entry = build.layout(
        (count, *model.input_shape), build.choices[INPUT], _INPUT_ROWS, "x", least=0
    )
    split_at = model.fc_start
    body = build.chain(range(split_at), entry, (count, *model.input_shape), whole)
    rounds = []
    before = list(build.choices.values())[split_at]
    for part in parts(plan, before, body.exit, body.exit_shape, tuple(coords)):
        shape = (part.positions.size, *body.exit_shape[1:])
        head = build.chain(
            range(split_at, len(model.layers)), part.entry, shape, part.positions, loss=True
        )
        lo, hi = region(head.exit_shape, head.exit, coords)[BATCH]
        rounds.append(Round(part.rows, part.positions.size, head, part.positions[lo:hi]))
    lo, hi = region((count, *model.input_shape), entry, coords)[BATCH]
    return Program(count, whole[lo:hi], body, tuple(rounds), tuple(build.weights.values()))


_INPUT_ROWS = {
    "n": Row(x=BATCH, w=None, y=BATCH),
    "m": Row(x=BATCH, w=None, y=BATCH, alone=True),
    "r": Row(x=None, w=None, y=None),
}


@dataclass
class _Builder:
    model: Model
    plan: Plan
    coords: tuple[int, ...]
    choices: dict[str, Choice]

    def __post_init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self.of_layer: dict[str, dict[str, str]] = {}
        for (name, layer), shape in zip(self.model.layers, self.model.shapes(), strict=False):
            self._add_weights(name, layer, shape)
        with_weights = [i for i, (name, _) in enumerate(self.model.layers) if self.of_layer[name]]
        self.first = with_weights[0] if with_weights else len(self.model.layers)

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

    def _add_weights(self, name: str, layer: Layer, shape: Shape) -> None:
        choice = self.choices[name]
        rows = {letter: row(layer.kind, letter) for letter in choice.split}
        self.of_layer[name] = {}
        for specs, buffer in ((layer.params(shape), False), (layer.buffers(shape), True)):
            for short, param in specs.items():
                full = f"{name}.{short}"
                self.of_layer[name][short] = full
                self.weights[full] = self._weight(full, param, choice, rows, buffer)

    def _weight(
        self, full: str, param: Param, choice: Choice, rows: dict[str, Row], buffer: bool
    ) -> Weight:
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
        return Weight(full, param, home, use, fetch, bring, buffer)

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

    def chain(
        self, indices: range, entry: Layout, shape: Shape, positions: Positions, loss: bool = False
    ) -> Chain:
        """Return the steps of some consecutive layers for examples at `positions`."""
        steps: list[Step] = []
        back_to = None
        layout = entry
        for index in indices:
            name, layer = self.model.layers[index]
            choice = self.choices[name]
            rows = {letter: row(layer.kind, letter) for letter in choice.split}
            wanted = layout if choice.follows else self.layout(shape, choice, rows, "x", least=0)
            steps += [Redistribute(name, hop) for hop in self.route(shape, layout, wanted)]
            y_shape = (shape[0], *layer.out_shape(shape[1:]))
            after = self._leave(wanted, shape, y_shape, choice, rows)
            if index >= self.first and back_to is None:
                back_to = len(steps)
            steps.append(
                self._compute(index, choice, rows, (shape, wanted), (y_shape, after), positions)
            )
            layout, shape = after, y_shape
        if loss:
            rows = {letter: row("examplewise", letter) for letter in self.choices[LOSS].split}
            layout = self.arrive(LOSS, shape, layout, rows, steps)
        return Chain(tuple(steps), entry, layout, shape, len(steps) if back_to is None else back_to)

    def arrive(
        self, name: str, shape: Shape, layout: Layout, rows: dict[str, Row], steps: list[Step]
    ) -> Layout:
        """Add the moves that bring a layer's input where it is wanted; return how it then lies."""
        choice = self.choices[name]
        if choice.follows:
            return layout
        wanted = self.layout(shape, choice, rows, "x", least=0)
        steps += [Redistribute(name, hop) for hop in self.route(shape, layout, wanted)]
        return wanted

    def _leave(
        self, x: Layout, shape: Shape, y_shape: Shape, choice: Choice, rows: dict[str, Row]
    ) -> Layout:
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

    def _compute(
        self, index: int, choice: Choice, rows: dict[str, Row],
        x: tuple[Shape, Layout], y: tuple[Shape, Layout], positions: Positions,
    ) -> Compute:  # fmt: skip
        name, layer = self.model.layers[index]
        if "c" in choice.split and getattr(layer, "groups", 1) > 1:
            raise UserError(
                f"plan: layer {name}: a convolution in groups cannot divide its input channels; "
                "use split n or o"
            )
        box = region(*y, self.coords)
        return Compute(
            name=name,
            layer=layer,
            index=index,
            split=choice.split,
            x_shape=local_shape(*x, self.coords),
            y_shape=local_shape(*y, self.coords),
            positions=positions[slice(*box[BATCH])],
            channels=box[CHANNEL],
            weights=self.of_layer[name],
            sum_axes=tuple(
                a for a, letter in enumerate(choice.split)
                if rows[letter].y == BATCH and not rows[letter].alone and self.plan.grid[a] > 1
            ),
            idle=any(
                rows[letter].alone and at > 0
                for letter, at in zip(choice.split, self.coords, strict=True)
            ),
            first=index == self.first,
        )  # fmt: skip


def _nested(layout: Layout) -> bool:
    dims = [p.dim for p in layout if isinstance(p, Split)]
    return len(dims) > len(set(dims))


def _scaled(bounds: Bounds, length: int) -> Bounds:
    """Return channel bounds where every channel has become `length / bounds[-1]` features."""
    each = length // max(1, bounds[-1])
    return tuple(b * each for b in bounds)
