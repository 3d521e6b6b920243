"""How much memory a step takes at its peak, from a program alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from mpicnn.division.liveness import views
from mpicnn.division.operations import (
    EXAMPLES,
    Accumulate,
    Backward,
    Forward,
    Free,
    Loss,
    Operation,
    Receive,
    Rows,
    Slot,
    Start,
    Store,
    Sum,
    Wait,
)
from mpicnn.division.placement import Partial, Shape, Split, coordinates, local_shape, volume
from mpicnn.division.program import GlobalProgram, Program
from mpicnn.forecast.cost import Counter

KEPT = 2
"""What stays of a parameter between steps: itself and its momentum."""


@dataclass(frozen=True)
class Peak:
    """Say how many bytes a step takes at most, beside parameters, and at which operation."""

    bytes: int
    at: Operation | None


def step_peak(program: Program, coords: Sequence[int], itemsize: int) -> Peak:
    """Return the most that activations and gradients take at once on the rank at `coords`.

    Counted are the arrays that slots hold, each once however many slots see it: activations, what
    layers keep for their backward pass, gradients, parameters fetched from elsewhere, and messages
    on their way. Not counted are parameters and buffers at home, the images, and what a layer takes
    and gives back by itself, such as scratch memory of kernels.
    """
    memory = _Memory(program, tuple(coords), itemsize)
    most = Peak(0, None)
    for op in program.ops:
        taken = memory.do(op)
        if taken > most.bytes:
            most = Peak(taken, op)
    return most


def rank_bytes(program: GlobalProgram, place: int, itemsize: int) -> float:
    """Return the bytes of a rank's parameters, their momentum, and arrays at their peak.

    `place` is its number in the grid. Images, and what MPI and libraries take, come on top.
    """
    coords = coordinates(place, program.grid)
    counter = Counter(program, itemsize)
    items = sum(counter.items(w.param.shape, w.home) for w in program.weights)
    kept = np.broadcast_to(items, program.grid)[coords] * itemsize * KEPT
    return float(kept + step_peak(program.at(coords), coords, itemsize).bytes)


class _Memory:
    """Follow the arrays that slots hold; `taken` are their bytes.

    `_coming` are the bytes of arrays on their way, and of copies made where they arrive.
    """

    def __init__(self, program: Program, coords: tuple[int, ...], itemsize: int) -> None:
        self.coords, self.itemsize = coords, itemsize
        self.taken = 0
        self._numbers = 0
        self._sizes: dict[int, int] = {}
        self._seen: dict[int, set[Slot]] = {}
        self._held: dict[Slot, set[int]] = {}
        self._uses = {w.name: local_shape(w.param.shape, w.use, coords) for w in program.weights}
        self._coming: dict[Slot, tuple[int, int]] = {}
        for slot in (EXAMPLES, *program.homes.values()):
            self._new(slot, 0)

    def do(self, op: Operation) -> int:
        """Do to the slots what an operation does, and return the most bytes taken meanwhile."""
        match op:
            case Forward():
                self._forward(op)
            case Backward():
                self._backward(op)
            case Start():
                return self._start(op)
            case Wait() if op.y in self._coming:
                size, copied = self._coming.pop(op.y)
                self._new(op.y, size)
                return self.taken + copied
            case Receive():
                self._array(op.y, op.shape)
            case Store() if op.y not in self._held:
                self._array(op.y, op.shape)
            case Loss() if op.dx is not None:
                self._new(op.dx, self._size(op.x))
            case Accumulate() if op.over is not None:
                self._share(op.y, [op.over])
            case Accumulate():
                self._new(op.y, max(self._size(op.x), self._size(op.to)))
            case Sum():
                self._new(op.y, sum(map(self._size, op.x)))
                for slot in op.x:
                    self._share(slot, [op.y])
            case Rows() if op.rows.start == op.rows.stop:
                self._new(op.y, 0)
            case Free():
                for slot in op.slots:
                    self._drop(slot)
            case _:
                for slot, other in views(op):
                    self._share(slot, [other])
        return self.taken

    def _start(self, op: Start) -> int:
        move, shape, rank = op.hop.move, op.hop.shape, self.coords[op.hop.axis]
        padded = isinstance(move.src, Split) and isinstance(move.dst, Partial)
        if move.local and not padded:
            self._share(op.y, [op.x])
            return self.taken
        sent, size = (volume(p.box(shape, rank)) * self.itemsize for p in (move.src, move.dst))
        packs, unpacks = move.packed(shape, rank)
        self._new(op.y, size + packs * sent)
        if not move.local:
            self._coming[op.y] = size, unpacks * size
        # the parts of a message are copied, then put together, before there is room for the answer
        return self.taken + packs * max(0, sent - size)

    def _forward(self, op: Forward) -> None:
        call = op.call
        if op.over or (not call.idle and call.views_x):
            self._share(op.y, op.x[:1] if op.over else op.x)
        else:
            self._array(op.y, call.y_shape)
        if op.saved is not None:
            sizes = call.x_shapes, call.y_shape, self.itemsize
            self._new(op.saved, 0 if call.idle else call.layer.made_bytes(*sizes))

    def _backward(self, op: Backward) -> None:
        call = op.call
        seen = op.over or (not call.idle and "dx" in call.layer.views)
        for slot, shape in zip(op.dx, call.x_shapes, strict=True):
            if slot is not None and seen:
                self._share(slot, [op.dy])
            elif slot is not None:
                self._array(slot, shape)
        for short, slot in op.grads.items():
            if slot not in self._held:
                self._array(slot, self._uses[call.weights[short]])

    def _array(self, slot: Slot, shape: Shape) -> None:
        self._new(slot, prod(shape) * self.itemsize)

    def _new(self, slot: Slot, size: int) -> None:
        self._drop(slot)
        self._numbers += 1
        self._sizes[self._numbers], self._seen[self._numbers] = size, {slot}
        self._held[slot] = {self._numbers}
        self.taken += size

    def _share(self, slot: Slot, others: Iterable[Slot]) -> None:
        arrays = set().union(*(self._held[other] for other in others))
        for number in arrays:
            self._seen[number].add(slot)
        self._drop(slot, arrays)
        self._held[slot] = arrays

    def _drop(self, slot: Slot, but: Iterable[int] = ()) -> None:
        for number in self._held.pop(slot, set()) - set(but):
            self._seen[number].discard(slot)
            if not self._seen[number]:
                self.taken -= self._sizes.pop(number)
                del self._seen[number]

    def _size(self, slot: Slot) -> int:
        return sum(self._sizes[number] for number in self._held[slot])
