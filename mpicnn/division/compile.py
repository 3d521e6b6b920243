"""Turn a network, a plan and a place in the mesh into the program of one rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.division.layout import Site
from mpicnn.division.placement import Layout, Shape, local_shape, region, weighted_bounds
from mpicnn.division.plan import INPUT, LOSS, Plan
from mpicnn.division.program import (
    Chain,
    Compute,
    MicroBatch,
    Positions,
    Program,
    Redistribute,
    Round,
    Step,
    Transfer,
    WeightLayout,
)
from mpicnn.division.propagation import LayerDivision, propagate
from mpicnn.division.schedule import parts, turns
from mpicnn.division.strategy import BATCH, CHANNEL
from mpicnn.errors import UserError
from mpicnn.layers.activation import ReLU
from mpicnn.layers.base import Layer
from mpicnn.layers.conv import Conv
from mpicnn.layers.linear import Linear

if TYPE_CHECKING:
    from mpicnn.models import Model


def compile(model: Model, plan: Plan, coords: Sequence[int], count: int, stage: int = 0) -> Program:
    """Return the program of the rank at `coords` of a stage, for a batch of `count` examples.

    Pure: the same on every rank and without MPI, so that prediction can look at all ranks.
    Raises UserError where the plan does not fit the network.
    """
    build = _Builder(model, Site(plan, tuple(coords)), propagate(model, plan), stage)
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


def _join(steps: list[Step], step: Compute) -> Compute:
    """Return a step, joined to the one before it where they are a contraction and a ReLU.

    Classes derived from these may do something else.
    """
    last = steps[-1] if steps else None
    if type(step.layer) is not ReLU or not isinstance(last, Compute):
        return step
    if type(last.layer) not in (Conv, Linear):
        return step
    steps[-1] = replace(last, joined=True)
    return replace(step, joined=True)


@dataclass
class _Builder:
    model: Model
    site: Site
    divisions: dict[str, LayerDivision]
    stage: int

    def __post_init__(self) -> None:
        self.plan, self.coords = self.site.plan, self.site.coords
        layers = self.model.layers
        names = [name for name, _ in layers]
        starts = [0, *(names.index(name) for name in self.plan.stages), len(layers)]
        self.start, self.stop = starts[self.stage : self.stage + 2]
        self.last = self.stop == len(layers)
        self.of_layer: dict[str, dict[str, str]] = {}
        weights = self._weights()
        with_weights = [i for i, name in enumerate(names) if self.of_layer[name]]
        self.first = with_weights[0] if with_weights else len(layers)
        own = [n for name in names[self.start : self.stop] for n in self.of_layer[name].values()]
        self.weights = {full: weights[full] for full in own}

    def _weights(self) -> dict[str, WeightLayout]:
        """Return how all parameters and buffers of the network lie, and note whose they are.

        They are divided as channels are, which do not depend on the batch: one example will do.
        """
        found = {}
        shape: Shape = (1, *self.model.input_shape)
        layout = self.site.input_layout(shape, self.divisions[INPUT])
        for name, layer in self.model.layers:
            x, y_shape, y = self._layouts(name, layer, shape, layout)
            self.of_layer[name] = {}
            for specs, buffer in (
                (layer.params(shape[1:]), False), (layer.buffers(shape[1:]), True),
            ):  # fmt: skip
                for short, param in specs.items():
                    full = f"{name}.{short}"
                    self.of_layer[name][short] = full
                    found[full] = self.site.weight(full, param, self.divisions[name], x, y, buffer)
            shape, layout = y_shape, y
        return found

    def _layouts(
        self, name: str, layer: Layer, shape: Shape, found: Layout
    ) -> tuple[Layout, Shape, Layout]:
        """Return how a layer's input is to lie that is `found` somewhere, its output's shape and
        layout.

        Raises UserError where its channels are too few for the ranks that share them.
        """
        division = self.divisions[name]
        y_shape = (shape[0], *layer.out_shape(shape[1:]))
        try:
            x = found if division.follows else self.site.input_layout(shape, division)
            return x, y_shape, self.site.output_layout(x, y_shape, division)
        except ValueError as error:
            w = layer.params(shape[1:]).get("w")
            what = f"{name}.w of shape {w.shape}" if w else f"the channels of layer {name}"
            raise UserError(
                f"plan: {what} cannot be shared: {error}; "
                "give the ranks that shall stay idle a share of 0"
            ) from None

    def micro_batch(self, positions: Positions, at: int) -> tuple[Positions, MicroBatch]:
        """Return the examples that this rank reads of those at `positions`, and what it does.

        What it reads before them are `at` examples.
        """
        whole = (positions.size, *self.model.input_shape)
        entry = self.site.input_layout(whole, self.divisions[INPUT])
        lo, hi = (0, 0) if self.stage else region(whole, entry, self.coords)[BATCH]
        head_at = max(self.start, self.model.fc_start) if self.last else self.stop
        body = self.body(range(self.start, head_at), entry, positions)
        rounds = self.rounds(range(head_at, self.stop), body, positions) if self.last else []
        return positions[lo:hi], MicroBatch(slice(at, at + hi - lo), body, tuple(rounds))

    def body(self, indices: range, entry: Layout, positions: Positions) -> Chain:
        """Return the body's steps of a stage, with its transfers from and to other stages."""
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
        before = list(self.divisions.values())[indices.start]
        for part in parts(self.plan, before, body.exit, body.exit_shape, self.coords):
            shape = (part.positions.size, *body.exit_shape[1:])
            places = positions[part.positions]
            head = self.chain(indices, part.entry, shape, places, loss=True)
            lo, hi = region(head.exit_shape, head.exit, self.coords)[BATCH]
            yield Round(part.rows, places.size, head, places[lo:hi])

    def chain(
        self, indices: range, entry: Layout, shape: Shape, positions: Positions, loss: bool = False
    ) -> Chain:
        """Return the steps of some consecutive layers for examples at `positions`."""
        steps: list[Step] = []
        back_to = None
        layout = entry
        for index in indices:
            name, layer = self.model.layers[index]
            x, y_shape, y = self._layouts(name, layer, shape, layout)
            moves = self._moves(name, shape, layout, x)
            steps += moves
            if index >= self.first and back_to is None:
                back_to = len(steps)
            step = self._compute(index, (shape, x), (y_shape, y), positions)
            steps.append(step if moves else _join(steps, step))
            layout, shape = y, y_shape
        if loss:
            wanted = layout
            if not self.divisions[LOSS].follows:
                wanted = self.site.input_layout(shape, self.divisions[LOSS])
            steps += self._moves(LOSS, shape, layout, wanted)
            layout = wanted
        return Chain(tuple(steps), entry, layout, shape, len(steps) if back_to is None else back_to)

    def _moves(self, name: str, shape: Shape, found: Layout, wanted: Layout) -> list[Step]:
        """Return the moves that bring the input of layer `name` to where it is wanted."""
        return [Redistribute(name, hop) for hop in self.site.route(shape, found, wanted)]

    def _compute(
        self, index: int, x: tuple[Shape, Layout], y: tuple[Shape, Layout], positions: Positions
    ) -> Compute:
        name, layer = self.model.layers[index]
        rows = self.divisions[name].rows
        box = region(*y, self.coords)
        return Compute(
            name=name,
            layer=layer,
            index=index,
            x_shape=local_shape(*x, self.coords),
            y_shape=local_shape(*y, self.coords),
            positions=positions[slice(*box[BATCH])],
            channels=box[CHANNEL],
            weights=self.of_layer[name],
            sum_axes=tuple(
                a for a, row in enumerate(rows) if row.shares_batch and self.plan.grid[a] > 1
            ),
            idle=any(row.alone and at > 0 for row, at in zip(rows, self.coords, strict=True)),
            first=index == self.first,
        )
