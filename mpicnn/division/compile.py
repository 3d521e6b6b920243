"""Turn a network and a plan into the program of all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpicnn.division.layout import Layouts
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
from mpicnn.division.placement import Layout, ranges, weighted_bounds
from mpicnn.division.plan import INPUT, Plan
from mpicnn.division.program import GlobalProgram, WeightLayout
from mpicnn.division.propagation import propagate
from mpicnn.division.rounds import write_rounds
from mpicnn.division.schedule import turns
from mpicnn.division.segment import OWN, Segment
from mpicnn.division.strategy import BATCH

if TYPE_CHECKING:
    from mpicnn.models import Model


class Options(NamedTuple):
    """Say how gradients come home: `bucket` items at least in a message, and `by_round` whether
    the head's parameters change after every round (OWT)."""

    bucket: int = 1 << 18
    by_round: bool = False


DEFAULT = Options()


def compile(
    model: Model, plan: Plan, count: int, stage: int = 0, options: Options = DEFAULT
) -> GlobalProgram:
    """Return the program of all ranks of a stage, for a batch of `count` examples.

    Pure: the same everywhere and without MPI. `GlobalProgram.at` gives that of one rank.
    Raises UserError where the plan does not fit the network.
    """
    network = Network(model, Layouts(plan), propagate(model, plan), count)
    return _Builder(network, stage, options).program()


def compile_all(
    model: Model, plan: Plan, count: int, options: Options = DEFAULT
) -> list[GlobalProgram]:
    """Return the programs of all stages for a batch of `count` examples.

    Raises UserError where the plan does not fit the network.
    """
    return [compile(model, plan, count, stage, options) for stage in range(plan.depth)]


@dataclass
class Turn:
    """Hold what a stage does with a micro-batch in one direction, and the receives before it."""

    receives: list[Receive] = field(default_factory=list)
    ops: list[Operation] = field(default_factory=list)


class _Builder:
    def __init__(self, network: Network, stage: int, options: Options) -> None:
        self.network, self.stage, self.options = network, stage, options
        self.model, self.layouts = model, layouts = network.model, network.layouts
        self.plan = plan = layouts.plan
        names = [name for name, _ in model.layers]
        starts = [0, *(names.index(name) for name in plan.stages), len(names)]
        self.start, self.stop = starts[stage : stage + 2]
        self.last = self.stop == len(names)
        self.head = max(self.start, model.fc_start) if self.last else self.stop
        self.rounds = self.last and (plan.scheme != "a" or options.by_round)
        self.arriving = model.crossing(self.start) if stage else ()
        self.leaving = () if self.last else model.crossing(self.stop)
        self.weights = {weight.name: weight for weight in self._weights()}
        self.homes = {name: network.slot() for name in self.weights}
        network.use = {
            name: network.slot() if weight.fetch else self.homes[name]
            for name, weight in self.weights.items()
        }
        network.grads = {n: network.slot() for n, weight in self.weights.items() if weight.learns}
        self.sends: list[Wait] = []
        self.examples: list[tuple[Positions, Layout]] = []
        self.begun = np.zeros(plan.grid, np.int64)

    def _weights(self) -> Iterator[WeightLayout]:
        """Yield how the stage's parameters and buffers lie, and note whose they are.

        They are divided as channels are, which do not depend on the batch: one example will do.
        """
        lying = self.network.lie_all({0: self._images(1)}, range(self.stop))
        for index in range(self.start, self.stop):
            (name, layer), fed, lies = self.model.layers[index], self.model.fed[index], lying[index]
            full_names = self.network.weights[name] = {}
            for specs, buffer in ((layer.params(fed), False), (layer.buffers(fed), True)):
                for short, param in specs.items():
                    full = full_names[short] = f"{name}.{short}"
                    yield self.layouts.weight(
                        full, param, self.network.divisions[name], lies.x[0], lies.y.layout, buffer
                    )

    def _images(self, count: int) -> Value:
        whole = (count, *self.model.input_shape)
        return Value(whole, self.layouts.input_layout(whole, self.network.divisions[INPUT]))

    def program(self) -> GlobalProgram:
        """Return the program for the batch."""
        count = self.network.count
        bounds = weighted_bounds(count, (1.0,) * self.plan.micro_batches)
        cuts = [np.arange(lo, hi) for lo, hi in pairwise(bounds) if lo < hi]
        done: dict[tuple[str, int], Turn] = {}
        for index, positions in enumerate(cuts):
            done["F", index], done["B", index] = self._micro_batch(positions, len(cuts) == 1)
        order = [
            done[turn] for turn in turns(self.plan.order, self.plan.depth, self.stage, len(cuts))
        ]
        ops: list[Operation] = []
        for turn, following in zip(order, [*order[1:], Turn()], strict=True):
            # what a turn receives is posted a turn before
            ops += [*(turn.receives if turn is order[0] else ()), *following.receives, *turn.ops]
        gradients = Gradients(
            self.weights, self.network.grads, self.options.bucket, self.network.numbers
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
        return GlobalProgram(
            self.plan.grid, count, tuple(self.examples), listed, self.network.slot(),
            tuple(self.weights.values()), self.homes, gradients.home,
        )  # fmt: skip

    def _micro_batch(self, positions: Positions, whole: bool) -> tuple[Turn, Turn]:
        """Return what is done forward and backward with the examples at `positions`.

        `whole` says that they are all of the batch.
        """
        forward, backward = Turn(), Turn()
        images = self._images(positions.size)
        if self.stage:
            lying = self.network.lie_all({0: images}, range(self.start))
            values = {0: images} | {index + 1: lies.y for index, lies in lying.items()}
            here = {v: self._receive(values[v], v, forward, back=False) for v in self.arriving}
            forward.ops += self._waits(forward)
        else:
            here = {0: images._replace(slot=EXAMPLES if whole else self.network.slot())}
            if not whole:
                forward.ops.append(self._read(here[0]))
            self.examples.append((positions, images.layout))
        indices = range(self.start, self.head if self.rounds else self.stop)
        learning = (v for v in self.leaving if self.model.learns[v])
        outside = Counter(self.model.crossing(self.head) if self.rounds else learning)
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
        return forward, backward

    def _read(self, images: Value) -> Rows:
        """Return what takes a micro-batch out of the examples that each rank reads."""
        lo, hi = ranges(images.shape, images.layout, self.plan.grid, BATCH)
        start, self.begun = self.begun, self.begun + hi - lo
        return Rows(
            EXAMPLES, images.slot, np.stack([start, self.begun]), images.shape, images.layout
        )

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
        name = self.model.layers[self.stop if back else self.start][0]
        held = value._replace(slot=self.network.slot())
        turn.receives.append(Receive(name, held.slot, held.shape, held.layout, number, back))
        return held

    @staticmethod
    def _waits(turn: Turn) -> list[Operation]:
        return [Wait(op.name, op.y, op.detail, op.back) for op in turn.receives]

    def _send(self, segment: Segment, number: int, slot: Slot, back: bool) -> None:
        value = segment.values[number]
        name = self.model.layers[self.start if back else self.stop][0]
        send = Send(name, slot, self.network.slot(), value.shape, value.layout, number, back)
        segment.ops.append(send)
        self.sends.append(Wait(name, send.y, send.detail, back))

    def _learnt_by_round(self) -> dict[str, Slot] | None:
        """Return the slots of the head's gradients where it changes after every round."""
        if not self.options.by_round:
            return None
        head = {name for name, _ in self.model.layers[self.head :]}
        grads = self.network.grads.items()
        return {name: slot for name, slot in grads if self.weights[name].layer in head}
