"""Prove of the programs of all ranks that nothing waits for ever and nothing is left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.operations import (
    EXAMPLES,
    Accumulate,
    Backward,
    Call,
    Forward,
    Free,
    Loss,
    Operation,
    Receive,
    Rows,
    Send,
    Slot,
    Start,
    Store,
    Sum,
    Update,
    Wait,
)
from mpicnn.division.placement import Layout, Partial, Ranges, Replicated, Shape, Split, ranges
from mpicnn.division.program import GlobalProgram
from mpicnn.division.strategy import BATCH


class BrokenProgramError(Exception):
    """Report programs that do not fit each other: a defect of the package, not of a plan."""


def check(stages: Sequence[GlobalProgram]) -> None:
    """Raise BrokenProgramError unless the programs of all stages are whole and fit together.

    What passes cannot hang, and computes every example and every gradient once. The ranks of a
    stage do one list of operations, so each collective is begun by all of its group in one order.
    What one stage sends the next receives; every slot is written before it is read, and the tensor
    there lies as its reader expects; what begins ends; every example has its loss on one rank;
    every weight lives somewhere, and each gradient is complete before it travels.
    """
    for stage, program in enumerate(stages):
        _StageCheck(program, f"stage {stage}").check()
    for before, behind in pairwise(range(len(stages))):
        for source, goal, back in ((before, behind, False), (behind, before, True)):
            sent = _messages(stages[source], Send, back)
            received = _messages(stages[goal], Receive, back)
            if sent != received:
                raise BrokenProgramError(
                    f"stage {source} sends {sent}, but stage {goal} receives {received}"
                )
    labels = [op.labels for program in stages for op in program.ops if isinstance(op, Loss)]
    found = np.sort(np.concatenate([np.zeros(0, np.int64), *labels]))
    count = stages[0].count
    if not np.array_equal(found, np.arange(count)):
        raise BrokenProgramError(f"{count} examples, but losses of {found}")


def _messages(program: GlobalProgram, kind: type, back: bool) -> dict[int, list[_Block]]:
    """Return what a stage sends or receives by number, in order."""
    found: defaultdict[int, list[_Block]] = defaultdict(list)
    for op in program.ops:
        if isinstance(op, Send | Receive) and isinstance(op, kind) and op.back == back:
            found[op.number].append(_Block(op.shape, op.layout))
    return dict(found)


class _Block(NamedTuple):
    """A tensor's whole shape, and how it lies."""

    shape: Shape
    layout: Layout


class _StageCheck:
    """Follow the slots through a stage's program: what is there, and what is on its way."""

    def __init__(self, program: GlobalProgram, where: str) -> None:
        self.program, self.where, self.grid = program, where, program.grid
        self.weights = {weight.name: weight for weight in program.weights}
        self.there: dict[Slot, _Block | Call] = {}
        self.coming: dict[Slot, dict[Slot, _Block]] = {}
        self.stored: dict[Slot, NDArray[np.int64]] = {}
        self.grads: set[Slot] = set()
        self.sent: set[Slot] = set()

    def check(self) -> None:
        """Raise BrokenProgramError for what does not fit."""
        for name, weight in self.weights.items():
            home = self._block(weight.param.shape, weight.home)
            if any(isinstance(placement, Partial) for placement in home.layout):
                raise self._broken(f"{name} lives as {weight.home}")
            self.there[self.program.homes[name]] = home
        for op in self.program.ops:
            self._do(op)
        if self.coming:
            raise self._broken(f"begun, but not waited for: slots {self.coming}")
        updated = (op.grads for op in self.program.ops if isinstance(op, Update))
        for name in self.program.grads.keys() - set().union(*updated):
            weight = self.weights[name]
            arrives = self._block(weight.param.shape, weight.home)
            self._read(self.program.grads[name], f"the update of {name}", arrives)

    def _broken(self, what: str) -> BrokenProgramError:
        return BrokenProgramError(f"{self.where}: {what}")

    def _block(self, shape: Shape, layout: Layout, dual: bool = False) -> _Block:
        """Return a tensor that lies as told, or its gradient, once its splits are seen to fit it.

        Along an axis of one rank any placement is the same.
        """
        parts: dict[int, tuple[int, ...]] = {}
        found: Layout = ()
        for ranks, placement in zip(self.grid, layout, strict=True):
            if isinstance(placement, Split):
                outer = parts.get(placement.dim, (0, shape[placement.dim]))
                parts[placement.dim] = placement.bounds
                if placement.bounds[::ranks] != outer:
                    raise self._broken(f"{placement} does not divide {outer} by {ranks}")
            placement = Replicated() if ranks == 1 else placement
            found += (placement.dual if dual and ranks > 1 else placement,)
        return _Block(shape, found)

    def _read(self, slot: Slot, at: str, expected: _Block | None = None) -> _Block:
        found = self.there.get(slot)
        if slot == EXAMPLES and expected:
            shape = expected.shape[1:]
            images = (self._block((n.size, *shape), how) for n, how in self.program.examples)
            found = next(images, None)
        if not isinstance(found, _Block):
            raise self._broken(f"{at} reads slot {slot}, which holds {found}")
        if slot in self.stored:
            rows = self.stored.pop(slot)
            if not np.array_equal(rows, self._rows(found)):
                raise self._broken(f"{at} reads {found}, of which {rows} rows are stored")
        if expected is not None and found != expected:
            raise self._broken(f"{at} reads {expected}, but the value is {found}")
        return found

    def _rows(self, block: _Block) -> NDArray[np.int64]:
        """Return how many rows of a tensor every rank has: int64 (*grid,)."""
        lo, hi = ranges(block.shape, block.layout, self.grid, BATCH)
        return np.broadcast_to(hi - lo, self.grid)

    def _do(self, op: Operation) -> None:
        match op:
            case Start(hop=hop):
                before, after = (self._block(hop.shape, hop.layout(end)) for end in (False, True))
                self._read(op.x, op.name, before)
                self._begin(op.y, {op.y: after})
                self._travels(op.x)
            case Wait():
                if op.y not in self.coming:
                    raise self._broken(f"{op.name} waits for nothing")
                self.there |= self.coming.pop(op.y)
            case Forward():
                self._forward(op)
            case Backward():
                self._backward(op)
            case Loss():
                logits = self._read(op.x, "the loss")
                expected = self._block((op.labels.size, *logits.shape[1:]), op.layout)
                self._read(op.x, "the loss", expected)
                if op.dx is not None:
                    self.there[op.dx] = self._block(*logits, dual=True)
            case Rows():
                self._cut(op)
            case Store():
                self._fill(op)
            case Accumulate():
                total = self._read(op.x, "a sum", self._read(op.to, "a sum"))
                self._end(op.over)
                self.there[op.y] = total
            case Sum():
                self._sum(op)
            case Send():
                self._read(op.x, op.name, self._block(op.shape, op.layout, dual=op.back))
                self._begin(op.y, {})
            case Receive():
                self._begin(op.y, {op.y: self._block(op.shape, op.layout, dual=op.back)})
            case Update():
                for name, slot in op.grads.items():
                    self._read(slot, f"the update of {name}")
                    self._end(slot)
            case Free():
                self._free(op)

    def _begin(self, slot: Slot, arriving: dict[Slot, _Block]) -> None:
        """Note what will be there once somebody has waited for a slot."""
        if slot in self.coming:
            raise self._broken(f"slot {slot} is on its way twice")
        self.coming[slot] = arriving

    def _free(self, op: Free) -> None:
        for slot in op.slots:
            found = self.there.pop(slot, None)
            self.sent.discard(slot)
            if isinstance(found, Call):
                raise self._broken(f"{found.name} does not go back")
            if found and slot in self.program.grads.values():
                raise self._broken(f"the gradient in slot {slot} changes nothing")

    def _end(self, slot: Slot | None) -> None:
        """Note that what a slot held has been written over, or used up."""
        if slot is not None:
            del self.there[slot]

    def _travels(self, slot: Slot) -> None:
        """Note that a gradient sets out: nothing may be added to it from then on."""
        if slot in self.grads:
            self.sent.add(slot)

    def _weight(self, name: str, dual: bool = False) -> _Block:
        return self._block(self.weights[name].param.shape, self.weights[name].use, dual)

    def _layer(self, op: Forward | Backward) -> None:
        """Read what both passes of a layer read."""
        call = op.call
        for short, slot in op.use.items():
            self._read(slot, f"{call.name}.{short}", self._weight(call.weights[short]))
        for slot, shape, layout in zip(op.x, call.x_shapes, call.x_layouts, strict=bool(op.x)):
            self._read(slot, call.name, self._block(shape, layout))

    def _forward(self, op: Forward) -> None:
        call = op.call
        self._layer(op)
        if call.positions.size != call.y_shape[BATCH]:
            raise self._broken(f"{call.name}: positions are not its rows")
        self._end(op.x[0] if op.over else None)
        if op.y in self.there:
            raise self._broken(f"{call.name} goes forward twice")
        self.there[op.y] = self._block(call.y_shape, call.y_layout)
        if op.saved is not None:
            self.there[op.saved] = call

    def _backward(self, op: Backward) -> None:
        call = op.call
        self._layer(op)
        self._read(op.dy, call.name, self._block(call.y_shape, call.y_layout, dual=True))
        if self.there.pop(op.saved, None) is not call:
            raise self._broken(f"{call.name} goes back through another run, or twice")
        if op.y is not None:
            self._read(op.y, call.name, self._block(call.y_shape, call.y_layout))
        self._end(op.dy if op.over else None)
        for dx, shape, layout in zip(op.dx, call.x_shapes, call.x_layouts, strict=True):
            if dx is not None:
                self.there[dx] = self._block(shape, layout, dual=True)
        for short, slot in op.grads.items():
            if slot in self.sent:
                raise self._broken(
                    f"{call.name}.{short}: a gradient sets out before it is complete"
                )
            self.grads.add(slot)
            self.there[slot] = self._weight(call.weights[short], dual=True)

    def _cut(self, op: Rows) -> None:
        y = self._block(op.shape, op.layout)
        if op.x == EXAMPLES:
            images = (_Block((n.size,), layout) for n, layout in self.program.examples)
            rows = sum(map(self._rows, images), np.zeros(self.grid, np.int64))
        else:
            rows = self._rows(self._read(op.x, "rows"))
        self._check_ranges(op.ranges, y, rows)
        self.there[op.y] = y

    def _fill(self, op: Store) -> None:
        y = self._block(op.shape, op.layout, dual=True)
        self._check_ranges(op.ranges, self._read(op.x, "store"), self._rows(y))
        self.there[op.y] = y
        self.stored[op.y] = self.stored.get(op.y, 0) + op.ranges[1] - op.ranges[0]

    def _check_ranges(self, part: Ranges, block: _Block, rows: NDArray[np.int64]) -> None:
        lo, hi = part
        inside = (lo >= 0).all() and (hi <= rows).all()
        if not (inside and np.array_equal(hi - lo, self._rows(block))):
            raise self._broken(f"{block} are not the rows {part} of {rows}")

    def _sum(self, op: Sum) -> None:
        if len(op.names) != len(op.x):
            raise self._broken(f"a sum of {len(op.x)} gradients for {op.names}")
        arriving = {}
        for name, slot in zip(op.names, op.x, strict=True):
            found = self._read(slot, f"the sum of {name}", self._weight(name, dual=True))
            whole = tuple(
                Replicated() if axis in op.axes else p for axis, p in enumerate(found.layout)
            )
            arriving[slot] = _Block(found.shape, whole)
            if not all(isinstance(found.layout[axis], Partial) for axis in op.axes):
                raise self._broken(f"{name}: no sum is pending in {found}")
            self._travels(slot)
        self._begin(op.y, arriving)
