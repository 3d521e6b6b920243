"""Follow one rank's slots through its program, and prove that what is read is there."""

from __future__ import annotations

from collections import Counter

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
from mpicnn.division.placement import box_shape, local_shape
from mpicnn.division.program import Program


class BrokenProgramError(Exception):
    """Report programs that do not fit each other: a defect of the package, not of a plan."""


def demand(met: bool, what: str) -> None:
    """Raise BrokenProgramError, saying what, unless something is met."""
    if not met:
        raise BrokenProgramError(what)


class RankCheck:
    """Follow one rank's slots through its program: shapes of what is there, or is on its way."""

    def __init__(self, program: Program, coords: tuple[int, ...], where: str) -> None:
        self.program, self.coords, self.where = program, coords, where
        self.there: dict[Slot, object] = {}
        self.coming: dict[Slot, object] = {}
        self.stored: Counter[Slot] = Counter()
        self.grads: set[Slot] = set()
        self.sent: set[Slot] = set()

    def check(self) -> None:
        """Raise BrokenProgramError for what does not fit."""
        for weight in self.program.weights:
            shape = local_shape(weight.param.shape, weight.home, self.coords)
            self.there[self.program.homes[weight.name]] = shape
        for op in self.program.ops:
            self._do(op)
        demand(not self.coming, f"{self.where}: begun, but not waited for: slots {self.coming}")
        updates = (op.grads for op in self.program.ops if isinstance(op, Update))
        learnt = self.program.grads.keys() - {name for grads in updates for name in grads}
        for weight in self.program.weights:
            if weight.name in learnt:
                shape = local_shape(weight.param.shape, weight.home, self.coords)
                found = self.there.get(self.program.grads[weight.name])
                at = f"{self.where}: the gradient of {weight.name}"
                demand(found == shape, f"{at} arrives as {found}, not {shape}")

    def _read(self, slot: Slot, at: str, shape: object = None) -> object:
        if slot == EXAMPLES:
            return None
        if slot not in self.there:
            raise BrokenProgramError(f"{self.where}: {at} reads slot {slot}, which holds nothing")
        found = self.there[slot]
        if slot in self.stored:
            rows = self.stored.pop(slot)
            whole = isinstance(found, tuple) and rows == found[0]
            demand(whole, f"{self.where}: {at} reads {found}, of which {rows} rows are stored")
        if shape is not None and found is not None and found != shape:
            raise BrokenProgramError(f"{self.where}: {at} reads {shape}, but the value is {found}")
        return found

    def _do(self, op: Operation) -> None:
        match op:
            case Start():
                rank = self.coords[op.hop.axis]
                self._read(op.x, op.name, box_shape(op.hop.move.src.box(op.hop.shape, rank)))
                self.coming[op.y] = box_shape(op.hop.move.dst.box(op.hop.shape, rank))
                self._travels(op.x)
            case Wait():
                demand(op.y in self.coming, f"{self.where}: {op.name} waits for nothing")
                self.there[op.y] = self.coming.pop(op.y)
            case Forward() | Backward():
                self._compute(op)
            case Loss():
                shape = self._read(op.x, "loss")
                fits = not isinstance(shape, tuple) or shape[0] == len(op.labels)
                demand(fits, f"{self.where}: the loss has {len(op.labels)} labels for {shape}")
                if op.dx is not None:
                    self.there[op.dx] = shape
            case Rows():
                shape = self._read(op.x, "rows")
                rows = op.rows.stop - op.rows.start
                self.there[op.y] = (rows, *shape[1:]) if isinstance(shape, tuple) else None
            case Store():
                rows = op.rows.stop - op.rows.start
                self._read(op.x, "store", (rows, *op.shape[1:]))
                self.there[op.y] = op.shape
                self.stored[op.y] += rows
            case Accumulate():
                shape = self._read(op.x, "sum", self._read(op.to, "sum"))
                if op.over is not None:
                    del self.there[op.over]
                self.there[op.y] = shape
            case Sum():
                for slot in op.x:
                    self._read(slot, "gradients")
                    self._travels(slot)
                self.coming[op.y] = None
            case Send():
                self._read(op.x, op.name, op.shape)
                self.coming[op.y] = None
            case Receive():
                self.coming[op.y] = op.shape
            case Update():
                for slot in op.grads.values():
                    self._read(slot, "update")
            case Free():
                for slot in op.slots:
                    self.there.pop(slot, None)
                    self.sent.discard(slot)

    def _travels(self, slot: Slot) -> None:
        """Note that a gradient sets out: nothing may be added to it from then on."""
        if slot in self.grads:
            self.sent.add(slot)

    def _compute(self, op: Forward | Backward) -> None:
        call = op.call
        for short, slot in op.use.items():
            self._read(slot, f"{call.name}.{short}")
        if isinstance(op, Forward):
            for slot, shape in zip(op.x, call.x_shapes, strict=True):
                self._read(slot, call.name, shape)
            fits = len(call.positions) == call.y_shape[0]
            demand(fits, f"{self.where}: {call.name}: positions are not its rows")
            if op.over:
                del self.there[op.x[0]]
            self.there[op.y] = call.y_shape
            if op.saved is not None:
                self.there[op.saved] = call
        else:
            self._back(op, call)

    def _back(self, op: Backward, call: Call) -> None:
        self._read(op.dy, call.name, call.y_shape)
        demand(self._read(op.saved, call.name) is call, f"{self.where}: {call.name}: another run")
        for slot, shape in zip(op.x, call.x_shapes, strict=bool(op.x)):
            self._read(slot, call.name, shape)
        if op.y is not None:
            self._read(op.y, call.name, call.y_shape)
        if op.over:
            del self.there[op.dy]
        for dx, shape in zip(op.dx, call.x_shapes, strict=True):
            if dx is not None:
                self.there[dx] = shape
        for short, slot in op.grads.items():
            late = f"{self.where}: {call.name}.{short}: a gradient sets out before it is complete"
            demand(slot not in self.sent, late)
            self.grads.add(slot)
            self.there[slot] = self.there[op.use[short]]
