"""Turn a network, a plan and a place in the mesh into the program of one rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.division.layout import Site
from mpicnn.division.liveness import with_frees, with_overwriting
from mpicnn.division.network import Network, Value
from mpicnn.division.operations import (
    EXAMPLES,
    Operation,
    Positions,
    Receive,
    Rows,
    Send,
    Slot,
    Wait,
)
from mpicnn.division.order import Gradients, fetched
from mpicnn.division.placement import local_shape, region, weighted_bounds
from mpicnn.division.plan import INPUT, Plan
from mpicnn.division.program import Program, WeightLayout
from mpicnn.division.propagation import propagate
from mpicnn.division.rounds import write_rounds
from mpicnn.division.schedule import turns
from mpicnn.division.segment import OWN, Segment
from mpicnn.division.strategy import BATCH

if TYPE_CHECKING:
    from mpicnn.models import Model


@dataclass(frozen=True)
class Options:
    """Say how gradients come home: `bucket` items at least in a message, and `by_round` whether
    the head's parameters change after every round (OWT)."""

    bucket: int = 1 << 18
    by_round: bool = False


DEFAULT = Options()


def compile(
    model: Model, plan: Plan, coords: Sequence[int], count: int, stage: int = 0,
    options: Options = DEFAULT,
) -> Program:  # fmt: skip
    """Return the program of the rank at `coords` of a stage, for a batch of `count` examples.

    Pure: the same on every rank and without MPI, so that prediction can look at all ranks.
    Raises UserError where the plan does not fit the network.
    """
    network = Network(model, Site(plan, tuple(coords)), propagate(model, plan), count)
    return _Builder(network, stage, options).program()


@dataclass
class Turn:
    """Hold what a stage does with a micro-batch in one direction, and the receives before it."""

    receives: list[Operation] = field(default_factory=list)
    ops: list[Operation] = field(default_factory=list)


class _Builder:
    def __init__(self, network: Network, stage: int, options: Options) -> None:
        self.network, self.stage, self.options = network, stage, options
        self.model, self.site = network.model, network.site
        self.plan, self.coords = self.site.plan, self.site.coords
        model, plan = self.model, self.plan
        names = [name for name, _ in model.layers]
        starts = [0, *(names.index(name) for name in plan.stages), len(names)]
        self.start, self.stop = starts[stage : stage + 2]
        self.last = self.stop == len(names)
        self.head = max(self.start, model.fc_start) if self.last else self.stop
        self.rounds = self.last and (plan.scheme != "a" or options.by_round)
        self.arriving = model.crossing(self.start) if stage else ()
        self.leaving = () if self.last else model.crossing(self.stop)
        weights = self._weights()
        own = [
            n for name in names[self.start : self.stop] for n in self.network.weights[name].values()
        ]
        self.weights = {full: weights[full] for full in own}
        self.homes = {name: self.network.slot() for name in own}
        self.network.use = {
            name: self.network.slot() if weights[name].fetch else self.homes[name] for name in own
        }
        self.network.grads = {name: self.network.slot() for name in own if weights[name].learns}
        self.sends: list[Wait] = []

    def _weights(self) -> dict[str, WeightLayout]:
        """Return how all parameters and buffers of the network lie, and note whose they are.

        They are divided as channels are, which do not depend on the batch: one example will do.
        """
        found = {}
        values = {0: self._images(1)}
        lying = self.network.lie_all(values, range(len(self.model.layers)))
        for index, (name, layer) in enumerate(self.model.layers):
            fed, lies = self.model.fed[index], lying[index]
            full_names = self.network.weights[name] = {}
            for specs, buffer in ((layer.params(fed), False), (layer.buffers(fed), True)):
                for short, param in specs.items():
                    full = full_names[short] = f"{name}.{short}"
                    found[full] = self.site.weight(
                        full, param, self.network.divisions[name], lies.x[0], lies.y, buffer
                    )
        return found

    def _images(self, count: int) -> Value:
        whole = (count, *self.model.input_shape)
        return Value(whole, self.site.input_layout(whole, self.network.divisions[INPUT]))

    def program(self) -> Program:
        """Return the program for the batch."""
        count = self.network.count
        bounds = weighted_bounds(count, (1.0,) * self.plan.micro_batches)
        cuts = [np.arange(lo, hi) for lo, hi in pairwise(bounds) if lo < hi]
        read: list[Positions] = []
        done: dict[tuple[str, int], Turn] = {}
        for index, positions in enumerate(cuts):
            mine, done["F", index], done["B", index] = self._micro_batch(
                positions, sum(p.size for p in read), len(cuts) == 1
            )
            read.append(mine)
        order = [
            done[turn] for turn in turns(self.plan.order, self.plan.depth, self.stage, len(cuts))
        ]
        ops: list[Operation] = []
        for turn, following in zip(order, [*order[1:], Turn()], strict=True):
            # what a turn receives is posted a turn before
            ops += [*(turn.receives if turn is order[0] else ()), *following.receives, *turn.ops]
        gradients = Gradients(
            self.weights, self.network.grads, self.coords, self.options.bucket, self.network.numbers
        )
        complete = [
            *fetched(
                gradients.brought(ops), self.weights, self.homes, self.network.use,
                self.network.numbers,
            ),
            *self.sends,
        ]  # fmt: skip
        kept = {EXAMPLES, *self.homes.values(), *gradients.home.values()}
        listed = with_frees(with_overwriting(complete, kept), kept)
        return Program(
            count, np.concatenate(read), listed, self.network.slot(), tuple(self.weights.values()),
            self.homes, gradients.home,
        )  # fmt: skip

    def _micro_batch(
        self, positions: Positions, at: int, whole: bool
    ) -> tuple[Positions, Turn, Turn]:
        """Return the examples that this rank reads of those at `positions`, and what it does with
        them forward and backward.

        What it reads before them are `at` examples; `whole` says that they are all of the batch.
        """
        forward, backward = Turn(), Turn()
        images = self._images(positions.size)
        lo, hi = (0, 0) if self.stage else region(images.shape, images.layout, self.coords)[BATCH]
        values = {0: images}
        for index, lies in self.network.lie_all(values, range(self.start)).items():
            values[index + 1] = Value(lies.y_shape, lies.y)
        if self.stage:
            here = {v: self._receive(values[v], v, forward, back=False) for v in self.arriving}
            forward.ops += self._waits(forward)
        elif whole:
            here = {0: Value(images.shape, images.layout, EXAMPLES)}
        else:
            here = {0: Value(images.shape, images.layout, self.network.slot())}
            forward.ops.append(Rows(EXAMPLES, here[0].slot, slice(at, at + hi - lo)))
        outside = Counter(v for v in self.leaving if self.model.learns[v])
        indices = range(self.start, self.stop)
        if self.rounds:
            indices = range(self.start, self.head)
            outside = Counter(self.model.crossing(self.head))
        segment = Segment(
            self.network, indices, here, positions, outside, self.last and not self.rounds
        )
        self._forward(segment, forward)
        segment.ops = backward.ops
        if self.rounds:
            write_rounds(segment, range(self.head, self.stop), self._learnt_by_round())
        elif self.last:
            segment.forward(range(self.head, self.stop))
            segment.lose()
        else:
            self._receive_gradients(segment, backward)
        segment.backward(indices)
        for value in reversed(self.arriving):
            if self.model.learns[value]:
                self._send(segment, value, segment.gradient(value), back=True)
        return positions[lo:hi], forward, backward

    def _forward(self, segment: Segment, turn: Turn) -> None:
        """Write the body's forward pass; what later stages read leaves as soon as it is there."""
        segment.ops = turn.ops
        for value, held in segment.values.items():
            segment.begin(value)
            if value in self.leaving:
                self._send(segment, value, held.slot, back=False)
        for index in range(self.start, self.head):
            segment.forward([index])
            if index + 1 in self.leaving:
                self._send(segment, index + 1, segment.values[index + 1].slot, back=False)

    def _receive_gradients(self, segment: Segment, turn: Turn) -> None:
        """Write the arrival of gradients of what later stages have read."""
        arrived = [
            (v, self._receive(segment.values[v], v, turn, back=True))
            for v in reversed(self.leaving)
            if self.model.learns[v]
        ]
        segment.ops += self._waits(turn)
        for value, held in arrived:
            segment.contribute(value, OWN, held.slot)

    def _receive(self, value: Value, number: int, turn: Turn, back: bool) -> Value:
        shape = local_shape(value.shape, value.layout, self.coords)
        name = self.model.layers[self.stop if back else self.start][0]
        slot = self.network.slot()
        turn.receives.append(Receive(name, slot, shape, number, back))
        return Value(value.shape, value.layout, slot)

    @staticmethod
    def _waits(turn: Turn) -> list[Operation]:
        found = (op for op in turn.receives if isinstance(op, Receive))
        return [Wait(op.name, op.y, op.detail, op.back) for op in found]

    def _send(self, segment: Segment, number: int, slot: Slot, back: bool) -> None:
        value = segment.values[number]
        shape = local_shape(value.shape, value.layout, self.coords)
        name = self.model.layers[self.start if back else self.stop][0]
        send = Send(name, slot, self.network.slot(), shape, number, back)
        segment.ops.append(send)
        self.sends.append(Wait(name, send.y, send.detail, back))

    def _learnt_by_round(self) -> dict[str, Slot] | None:
        """Return the slots of the head's gradients where it changes after every round."""
        if not self.options.by_round:
            return None
        head = {name for name, _ in self.model.layers[self.head :]}
        grads = self.network.grads.items()
        return {name: slot for name, slot in grads if self.weights[name].layer in head}
