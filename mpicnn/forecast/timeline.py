"""When every operation of a step begins and ends on every rank: the programs, with a clock each.

It reads the very operations that training carries out, so waiting shows where it arises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.operations import (
    Backward,
    Call,
    Forward,
    Loss,
    Operation,
    Receive,
    Send,
    Slot,
    Start,
    Sum,
    Update,
    Wait,
)
from mpicnn.division.program import GlobalProgram
from mpicnn.forecast.cost import Counter
from mpicnn.forecast.durations import Times, durations
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.traffic import Arrival, Exchange, Traffic, batch_sums, carried, summed

Number = tuple[int, bool]
"""What tells messages between stages apart: the value's number, and whether it goes back."""


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


def timeline(
    programs: Sequence[GlobalProgram],
    machine: Machine,
    itemsize: int,
    measured: Sequence[Sequence[Times]] | None = None,
) -> Timeline:
    """Return when the ranks of a machine do what, in a step of the programs of all stages.

    `itemsize` are the bytes of a number. `measured` are, for each stage, how long its operations
    and the update take each rank, s, as `durations` returns them; else its rates say it.
    Raises ValueError unless the machine has as many ranks as the programs, and where stages wait
    for each other, which `verify.check` finds before.
    """
    ranks = sum(prod(program.grid) for program in programs)
    if ranks != len(machine.devices):
        raise ValueError(f"{ranks} ranks on a machine of {len(machine.devices)}")
    traffic, stages = Traffic(machine), []
    for at, program in enumerate(programs):
        here = slice(at * prod(program.grid), (at + 1) * prod(program.grid))
        if measured is None:
            rates = machine.rates.on(program.grid, here.start)
            took: Sequence[Times] = durations(program, rates, itemsize)
        else:
            took = measured[at]
        hosts = np.array(machine.hosts[here]).reshape(program.grid)
        stages.append(_Stage(at, program, took, Counter(program, itemsize), hosts, traffic))
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


@dataclass
class _Stage:
    """Follow one stage: the clock of each of its ranks, and what is on its way to each slot."""

    number: int
    program: GlobalProgram
    took: Sequence[Times]
    counter: Counter
    hosts: NDArray[np.int64]
    traffic: Traffic
    intervals: list[Interval] = field(default_factory=list)
    neighbours: Sequence[_Stage] = ()
    arrived: dict[Number, list[Arrival]] = field(default_factory=dict)
    _coming: dict[Slot, Arrival] = field(default_factory=dict)
    _received: dict[Number, int] = field(default_factory=dict)
    _awaited: dict[Slot, tuple[Number, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.grid = self.program.grid
        self.clock = np.zeros(self.grid)

    def steps(self) -> Iterator[bool]:
        """Go through the operations; stop before links are used (True), and where another stage has
        not sent yet what is needed (False)."""
        *took, update = self.took
        for op, seconds in zip(self.program.ops, took, strict=True):
            if isinstance(op, Start | Sum | Send):
                yield True
            while isinstance(op, Wait) and not self._here(op.y):
                yield False
            self._do(op)
            self.until(*label(op), self.clock + seconds)
        self.until("update", "other", self.clock + update)

    def _do(self, op: Operation) -> None:
        match op:
            case Forward():
                self._batch_sums(op.call, 0)
            case Backward() if op.call.need_dx:
                self._batch_sums(op.call, 1)
            case Start() if op.hop.move.local:
                self._coming[op.y] = Arrival(self.clock, np.zeros(self.grid))
            case Start():
                self._coming[op.y] = self._exchange(carried(self.counter, op.hop))
            case Sum():
                self._coming[op.y] = self._exchange(summed(self.counter, op.names, op.axes))
            case Wait():
                done = self._coming.pop(op.y)
                self.until(op.name, "communication", np.maximum(self.clock + done.busy, done.at))
            case Send():
                self._send(op)
            case Receive():
                self._receive(op)

    def _batch_sums(self, call: Call, way: int) -> None:
        """Wait for the sums over a divided batch that a layer's pass needs (way 0 forward, 1 back).

        Their time does not depend on when in the pass they are made.
        """
        what, taking_part = batch_sums(self.counter, call, way)
        if taking_part.any():
            done = self._exchange(what)
            end = np.where(taking_part, np.maximum(self.clock + done.busy, done.at), self.clock)
            self.until(call.name, "communication", end)

    def _exchange(self, what: Exchange) -> Arrival:
        return self.traffic.collective(self.hosts, self.clock, what)

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

    def until(self, name: str, category: str, end: Times) -> None:
        """Move the clocks of all ranks on, and note what they did meanwhile."""
        begin, self.clock = self.clock, end
        self.intervals.append(Interval(self.number, name, category, begin.ravel(), end.ravel()))


def label(op: Operation) -> tuple[str, str]:
    """Return for which layer an operation works, and in which category of `step.timing`."""
    match op:
        case Forward() | Backward():
            return op.call.name, op.call.category
        case Start() | Wait() | Send() | Receive():
            return op.name, "communication"
        case Sum():
            return "gradients", "communication"
        case Loss():
            return "loss", "other"
        case Update():
            return "update", "other"
    return "gradients", "other"
