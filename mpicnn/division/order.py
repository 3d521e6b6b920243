"""Insert what brings parameters from home to where layers use them, and gradients home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod

from mpicnn.division.journey import Journey
from mpicnn.division.operations import (
    Backward,
    Forward,
    Free,
    Operation,
    Slot,
    Sum,
    Update,
    Wait,
)
from mpicnn.division.placement import largest
from mpicnn.division.program import WeightLayout


def fetched(
    ops: Iterable[Operation],
    weights: Mapping[str, WeightLayout],
    homes: Mapping[str, Slot],
    use: Mapping[str, Slot],
    numbers: count[int],
) -> Iterator[Operation]:
    """Yield operations, and between them what carries parameters from home to where they are used.

    All set out at once; each is waited for before its first use. After an update those set out anew
    that are used once more.
    """
    listed = list(ops)
    last = {
        name: at
        for at, op in enumerate(listed)
        if isinstance(op, Forward | Backward)
        for name in op.call.weights.values()
    }
    journeys = {
        name: Journey(
            w.layer, w.fetch, (homes[name], *(next(numbers) for _ in w.fetch[1:]), use[name])
        )
        for name, w in weights.items()
        if w.fetch
    }
    for journey in journeys.values():
        yield from journey.begin()
    for at, op in enumerate(listed):
        if isinstance(op, Forward | Backward):
            for name in op.call.weights.values():
                if name in journeys:
                    yield from journeys[name].end()
        yield op
        if isinstance(op, Update):
            for name in op.grads:
                if name in journeys and last[name] > at:
                    yield from journeys[name].begin()


@dataclass
class Gradients:
    """Bring gradients home as soon as they are complete.

    Those that need a plain sum over the same ranks share a message of at least `limit` items on
    the rank that has most of them; the others travel one by one.
    `grads` are the slots where they are made; `home` those where they arrive.
    """

    weights: Mapping[str, WeightLayout]
    grads: Mapping[str, Slot]
    limit: int
    numbers: count[int]
    home: dict[str, Slot] = field(init=False)

    def __post_init__(self) -> None:
        self.home = {
            name: slot if self._stays(self.weights[name]) else next(self.numbers)
            for name, slot in self.grads.items()
        }
        self.open: dict[tuple[int, ...], list[str]] = {}
        self.held: Counter[tuple[int, ...]] = Counter()
        self.travelling: list[Journey] = []
        self.summing: list[Sum] = []

    @staticmethod
    def _stays(weight: WeightLayout) -> bool:
        return not weight.bring or bool(weight.summed)

    def brought(self, ops: Iterable[Operation]) -> Iterator[Operation]:
        """Yield operations, and between them what brings gradients home."""
        listed = list(ops)
        missing = _contributions(listed)
        updates = 0
        for op in listed:
            if isinstance(op, Update):
                updates += 1
                yield from self._finish()
                yield Update({name: self.home[name] for name in op.grads}, op.scale)
                yield Free((*op.grads.values(), *(self.home[name] for name in op.grads)))
                continue
            yield op
            if isinstance(op, Backward):
                for short in op.grads:
                    name = op.call.weights[short]
                    missing[updates, name] -= 1
                    if not missing[updates, name]:
                        yield from self._send(name)
        yield from self._finish()

    def _send(self, name: str) -> Iterator[Operation]:
        weight = self.weights[name]
        if weight.summed:
            self.open.setdefault(weight.summed, []).append(name)
            self.held[weight.summed] += prod(largest(weight.param.shape, weight.use))
            if self.held[weight.summed] >= self.limit:
                yield self._close(weight.summed)
        elif weight.bring:
            between = (next(self.numbers) for _ in weight.bring[1:])
            slots = (self.grads[name], *between, self.home[name])
            journey = Journey(weight.layer, weight.bring, slots, back=True)
            self.travelling.append(journey)
            yield from journey.begin()

    def _close(self, axes: tuple[int, ...]) -> Sum:
        names = tuple(self.open.pop(axes))
        del self.held[axes]
        slots = tuple(self.grads[name] for name in names)
        self.summing.append(Sum(names, axes, slots, next(self.numbers)))
        return self.summing[-1]

    def _finish(self) -> Iterator[Operation]:
        """Yield what waits for all that is under way, and sends what has not been sent."""
        for axes in list(self.open):
            yield self._close(axes)
        for journey in self.travelling:
            yield from journey.end()
        for bucket in self.summing:
            yield Wait("gradients", bucket.y, "sum over the ranks", back=True)
        self.travelling, self.summing = [], []


def _contributions(ops: Sequence[Operation]) -> Counter[tuple[int, str]]:
    """Return how often each gradient is added to, by the number of updates before."""
    found: Counter[tuple[int, str]] = Counter()
    updates = 0
    for op in ops:
        if isinstance(op, Update):
            updates += 1
        elif isinstance(op, Backward):
            found.update((updates, op.call.weights[short]) for short in op.grads)
    return found
