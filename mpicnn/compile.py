"""Turn a network, a plan and a place in the mesh into the program of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
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
    MicroBatch,
    Positions,
    Program,
    Redistribute,
    Round,
    Step,
    Transfer,
    Weight,
)
from mpicnn.schedule import parts, turns
from mpicnn.strategy import BATCH, CHANNEL, Row, row

if TYPE_CHECKING:
    from mpicnn.models import Model


def compile(model: Model, plan: Plan, coords: Sequence[int], count: int, stage: int = 0) -> Program:
    """Return the program of the rank at `coords` of a stage, for a batch of `count` examples.

    Pure: the same on every rank and without MPI, so that prediction and simulation can look at
    all ranks. Raises UserError where the plan does not fit the network.
    """
    build = _Builder(model, plan, tuple(coords), resolve(model, plan), stage)
    bounds = weighted_bounds(count, (1.0,) * plan.micro_batches)
    read: list[Positions] = []
    micro_batches = []
    for lo, hi in pairwise(bounds):
        if lo < hi:
            mine, micro = build.micro_batch(np.arange(lo, hi), sum(p.size for p in read))
            read.append(mine)
            micro_batches.append(micro)
    return Program(
        count,
        np.concatenate(read),
        tuple(micro_batches),
        tuple(turns(plan.order, plan.depth, stage, len(micro_batches))),
        tuple(build.weights.values()),
    )


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
    stage: int

    def __post_init__(self) -> None:
        layers = self.model.layers
        names = [name for name, _ in layers]
        starts = [0, *(names.index(name) for name in self.plan.stages), len(layers)]
        self.start, self.stop = starts[self.stage : self.stage + 2]
        self.last = self.stop == len(layers)
        self.weights: dict[str, Weight] = {}
        self.of_layer: dict[str, dict[str, str]] = {}
        for (name, layer), shape in zip(layers, self.model.shapes(), strict=False):
            self._add_weights(name, layer, shape)
        with_weights = [i for i, name in enumerate(names) if self.of_layer[name]]
        self.first = with_weights[0] if with_weights else len(layers)
        own = [n for name in names[self.start : self.stop] for n in self.of_layer[name].values()]
        self.weights = {full: self.weights[full] for full in own}

    def micro_batch(self, positions: Positions, at: int) -> tuple[Positions, MicroBatch]:
        """Return the examples that this rank reads of those at `positions`, and what it does.

        What it reads before them are `at` examples.
        """
        whole = (positions.size, *self.model.input_shape)
        entry = self.layout(whole, self.choices[INPUT], _INPUT_ROWS, "x", least=0)
        lo, hi = (0, 0) if self.stage else region(whole, entry, self.coords)[BATCH]
        head_at = max(self.start, self.model.fc_start) if self.last else self.stop
        body = self.body(range(self.start, head_at), entry, positions)
        rounds = self.rounds(range(head_at, self.stop), body, positions) if self.last else []
        return positions[lo:hi], MicroBatch(slice(at, at + hi - lo), body, tuple(rounds))

    def body(self, indices: range, entry: Layout, positions: Positions) -> Chain:
        """Return what a stage does up to the head, with what it has to do with other stages."""
        whole = (positions.size, *self.model.input_shape)
        before = self.chain(range(indices.start), entry, whole, positions)
        own = self.chain(indices, before.exit, before.exit_shape, positions)
        steps, back_to = own.steps, own.back_to
        if self.stage:
            arrives = local_shape(before.exit_shape, before.exit, self.coords)
            steps = (Transfer(self.model.layers[self.start][0], arrives, out=False), *steps)
            back_to = 0 if self.first < self.start else back_to + 1
        if not self.last:
            leaves = local_shape(own.exit_shape, own.exit, self.coords)
            nothing = back_to == len(steps)
            steps = (*steps, Transfer(self.model.layers[self.stop][0], leaves, out=True))
            back_to += nothing
        return replace(own, entry=before.exit, steps=steps, back_to=back_to)

    def rounds(self, indices: range, body: Chain, positions: Positions) -> Iterator[Round]:
        """Yield the rounds of the head."""
        before = list(self.choices.values())[indices.start]
        for part in parts(self.plan, before, body.exit, body.exit_shape, self.coords):
            shape = (part.positions.size, *body.exit_shape[1:])
            places = positions[part.positions]
            head = self.chain(indices, part.entry, shape, places, loss=True)
            lo, hi = region(head.exit_shape, head.exit, self.coords)[BATCH]
            yield Round(part.rows, places.size, head, places[lo:hi])

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
