"""When every operation of a step begins and ends on every rank: the programs, with a clock each.

It reads the very operations that training carries out, so waiting shows where it arises.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

import numpy as np

from mpicnn.division.move import sum_sent
from mpicnn.division.operations import (
    Accumulate,
    Backward,
    Call,
    Forward,
    Loss,
    Operation,
    Receive,
    Send,
    Slot,
    Start,
    Store,
    Sum,
    Update,
    Wait,
)
from mpicnn.division.program import GlobalProgram
from mpicnn.forecast.cost import Counter, Work
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.traffic import Arrival, Exchange, Times, Traffic, carried

Number = tuple[int, bool]
"""What tells messages between stages apart: the value's number, and whether it goes back."""

UPDATE_PASSES = 5
"""Over a parameter: it, its gradient and its momentum are read, it and its momentum written."""


@dataclass(frozen=True)
class Interval:
    """Say when the ranks of a stage do something, in s from the beginning of the step: (ranks,)."""

    stage: int
    name: str
    category: str
    begin: Times
    end: Times


@dataclass(frozen=True)
class Timeline:
    """Hold what the ranks do in a step, in order, and the `seconds` until the last has ended."""

    intervals: tuple[Interval, ...]
    stages: int
    seconds: float

    def by_category(self) -> dict[str, Times]:
        """Return the seconds of every rank, (ranks,), in each category of `step.timing`.

        Communication includes waiting for other ranks, to the end of the step.
        """
        return self._sums("category")

    def by_layer(self) -> dict[str, Times]:
        """Return the seconds of every rank, (ranks,), for each layer, as the plan table lists it.

        A rank has none for layers of other stages.
        """
        return self._sums("name")

    def _sums(self, key: str) -> dict[str, Times]:
        found: dict[str, list[Times]] = {}
        for each in self.intervals:
            zeros = [np.zeros(each.begin.size) for _ in range(self.stages)]
            rows = found.setdefault(getattr(each, key), zeros)
            rows[each.stage] = rows[each.stage] + (each.end - each.begin)
        return {name: np.concatenate(rows) for name, rows in found.items()}


def timeline(programs: Sequence[GlobalProgram], machine: Machine, itemsize: int) -> Timeline:
    """Return when the ranks of a machine do what, in a step of the programs of all stages.

    `itemsize` are the bytes of a number. Raises ValueError unless the machine has as many ranks as
    the programs, and where stages wait for each other, which `verify.check` finds before.
    """
    ranks = sum(prod(program.grid) for program in programs)
    if ranks != len(machine.devices):
        raise ValueError(f"{ranks} ranks on a machine of {len(machine.devices)}")
    traffic = Traffic(machine)
    stages = [_Stage(at, programs, machine, itemsize, traffic) for at in range(len(programs))]
    for stage in stages:
        stage.neighbours = stages
    _run(stages)
    end = max(stage.clock.max() for stage in stages)
    for stage in stages:
        stage.until("totals", "communication", np.full_like(stage.clock, end))
    return Timeline(
        tuple(each for stage in stages for each in stage.intervals), len(stages), float(end)
    )


def _run(stages: Sequence[_Stage]) -> None:
    """Let stages use the links in the order of their clocks."""
    running = {stage.number: stage.steps() for stage in stages}
    ready = dict.fromkeys(running, False)

    def go_on(number: int) -> None:
        found = next(running[number], None)
        if found is None:
            del running[number], ready[number]
        else:
            ready[number] = found

    while running:
        for number in [number for number, has in ready.items() if not has]:
            go_on(number)
        able = [number for number, has in ready.items() if has]
        if able:
            go_on(min(able, key=lambda at: float(stages[at].clock.min())))
        elif running:
            raise ValueError("stages wait for each other's messages")


class _Stage:
    """Follow one stage: the clock of each of its ranks, and what is on its way to each slot."""

    def __init__(
        self,
        number: int,
        programs: Sequence[GlobalProgram],
        machine: Machine,
        itemsize: int,
        traffic: Traffic,
    ) -> None:
        self.number, self.program, self.traffic = number, programs[number], traffic
        self.grid = self.program.grid
        self.counter = Counter(self.program, itemsize)
        first, ranks = number * prod(self.grid), prod(self.grid)
        self.rates = {
            name: machine.rate(name)[first : first + ranks].reshape(self.grid)
            for name in ("convolution", "linear", "memory", "start")
        }
        self.hosts = np.array(machine.hosts[first : first + ranks]).reshape(self.grid)
        self.clock = np.zeros(self.grid)
        self.intervals: list[Interval] = []
        self.neighbours: list[_Stage] = []
        self._coming: dict[Slot, Arrival] = {}
        self.arrived: dict[Number, list[Arrival]] = {}
        self._received: dict[Number, int] = {}
        self._awaited: dict[Slot, tuple[Number, int]] = {}

    def steps(self) -> Iterator[bool]:
        """Go through the operations; stop before links are used (True), and where another stage has
        not sent yet what is needed (False)."""
        for op in self.program.ops:
            if isinstance(op, Start | Sum | Send):
                yield True
            while isinstance(op, Wait) and not self._here(op.y):
                yield False
            self._do(op)
        self._update(self.program.grads)

    def _do(self, op: Operation) -> None:
        match op:
            case Forward():
                self._layer(op.call, self.counter.forward(op.call), 0)
            case Backward():
                self._layer(op.call, self.counter.backward(op.call), 1)
            case Loss():
                self._take("loss", "other", self.rates["start"])
            case Start() if op.hop.move.local:
                self._coming[op.y] = Arrival(self.clock, np.zeros(self.grid))
            case Start():
                self._coming[op.y] = self._exchange(carried(self.counter, op.hop))
            case Sum():
                self._coming[op.y] = self._exchange(self._summed(op))
            case Wait():
                done = self._coming.pop(op.y)
                self.until(op.name, "communication", np.maximum(self.clock + done.busy, done.at))
            case Send():
                self._send(op)
            case Receive():
                self._receive(op)
            case Accumulate() | Store():
                self._take("gradients", "other", self.rates["start"])
            case Update():
                self._update(op.grads)

    def _layer(self, call: Call, work: Work, way: int) -> None:
        """Let the sums of a layer over its divided batch take their time, and its pass."""
        if call.sum_axes and (way == 0 or call.need_dx):
            self._batch_sums(call, self.counter.batch_sums(call, way))
        rate = self.rates["convolution" if call.layer.convolves else "linear"]
        some = np.broadcast_to(self.counter.items(call.y_shape, call.y_layout), self.grid) > 0
        seconds = work.flops / rate + work.bytes_touched / self.rates["memory"]
        self._take(call.name, call.category, seconds + some * self.rates["start"])

    def _batch_sums(self, call: Call, work: Work) -> None:
        """Wait for sums that all ranks of a batch need before they can go on."""
        taking_part = np.broadcast_to(work.messages, self.grid) > 0
        if taking_part.any():
            done = self._exchange(Exchange(call.sum_axes, work.bytes_sent, self._rounds(call)))
            end = np.where(taking_part, np.maximum(self.clock + done.busy, done.at), self.clock)
            self.until(call.name, "communication", end)

    def _rounds(self, call: Call) -> int:
        return sum(2 * ceil(log2(self.grid[axis])) for axis in call.sum_axes)

    def _exchange(self, what: Exchange) -> Arrival:
        return self.traffic.collective(self.hosts, self.clock, what)

    def _summed(self, op: Sum) -> Exchange:
        """Return the sum of gradients over the ranks along some axes, one message."""
        ranks = prod(self.grid[axis] for axis in op.axes)
        items = sum(self.counter.here[name] for name in op.names)
        volume = sum_sent(items * self.counter.itemsize, ranks)
        return Exchange(op.axes, volume, 2 * ceil(log2(ranks)))

    def _send(self, op: Send) -> None:
        """Let a message set out to the neighbouring stage, where it is awaited by number."""
        other = self.neighbours[self.number + (-1 if op.back else 1)]
        volume = self.counter.items(op.shape, op.layout) * self.counter.itemsize
        done = self.traffic.message((self.hosts, other.hosts), self.clock, volume)
        other.arrived.setdefault((op.number, op.back), []).append(done)
        self._coming[op.y] = done

    def _receive(self, op: Receive) -> None:
        """Note which of the messages under a number will be waited for."""
        key = (op.number, op.back)
        self._awaited[op.y] = (key, self._received.setdefault(key, 0))
        self._received[key] += 1

    def _here(self, slot: Slot) -> bool:
        """Say whether it is known when a slot is filled: its sender has come that far."""
        if slot in self._awaited:
            key, at = self._awaited[slot]
            sent = self.arrived.get(key, [])
            if at >= len(sent):
                return False
            self._coming[slot] = sent[at]
            del self._awaited[slot]
        return True

    def _update(self, names: Collection[str]) -> None:
        """Let parameters be changed."""
        held = [w for w in self.program.weights if w.name in names]
        items = sum(self.counter.items(w.param.shape, w.home) for w in held)
        touched = UPDATE_PASSES * items * self.counter.itemsize
        self._take("update", "other", touched / self.rates["memory"] + self.rates["start"])

    def _take(self, name: str, category: str, seconds: Any) -> None:
        self.until(name, category, self.clock + seconds)

    def until(self, name: str, category: str, end: Times) -> None:
        """Move the clocks of all ranks on, and note what they did meanwhile."""
        begin, self.clock = self.clock, end
        self.intervals.append(Interval(self.number, name, category, begin.ravel(), end.ravel()))
