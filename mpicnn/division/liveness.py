"""Free arrays behind their last reader, and let operations write over what nobody reads later.

Several slots may hold views of one array. Slots that may do so at any time form a group, and the
array of a group is in use as long as any of them is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mpicnn.division.operations import (
    Accumulate,
    Backward,
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


def reads(op: Operation) -> tuple[Slot, ...]:
    """Return the slots whose arrays an operation reads."""
    match op:
        case Start() | Loss() | Rows() | Send():
            return (op.x,)
        case Wait():
            return (op.y,)
        case Forward():
            return (*op.x, *op.use.values())
        case Backward():
            tape = (op.saved, *op.x, *(() if op.y is None else (op.y,)))
            return (op.dy, *tape, *op.use.values(), *op.grads.values())
        case Store():
            return (op.x, op.y)
        case Accumulate():
            return (op.x, op.to)
        case Sum():
            return op.x
        case Update():
            return tuple(op.grads.values())
    return ()


def writes(op: Operation) -> tuple[Slot, ...]:
    """Return the slots that an operation fills, at once or when what it begins has arrived."""
    match op:
        case Forward():
            return (op.y,) if op.saved is None else (op.y, op.saved)
        case Backward():
            return (*(slot for slot in op.dx if slot is not None), *op.grads.values())
        case Loss():
            return () if op.dx is None else (op.dx,)
        case Start() | Rows() | Store() | Accumulate() | Sum() | Send() | Receive():
            return (op.y,)
    return ()


def with_frees(ops: Iterable[Operation], kept: set[Slot]) -> tuple[Operation, ...]:
    """Return the operations, with a Free behind the last use of every slot that is not `kept`."""
    listed = list(ops)
    done: dict[int, list[Slot]] = {}
    for slot, at in _last_uses(listed).items():
        if slot not in kept:
            done.setdefault(at, []).append(slot)
    found: list[Operation] = []
    for at, op in enumerate(listed):
        found.append(op)
        if at in done:
            found.append(Free(tuple(done[at])))
    return tuple(found)


def with_overwriting(ops: Iterable[Operation], kept: set[Slot]) -> list[Operation]:
    """Return the operations, told to write results over inputs that nobody reads later.

    `kept` are slots whose arrays others hold.
    """
    listed = list(ops)
    groups, last = _Groups(listed), _last_uses(listed)
    ends: dict[Slot, int] = {}
    for slot, at in last.items():
        group = groups.of(slot)
        ends[group] = max(at, ends.get(group, 0))
    held = {groups.of(slot) for slot in kept}

    def ended(slot: Slot, at: int, others: Iterable[Slot]) -> bool:
        group = groups.of(slot)
        alone = all(groups.of(other) != group for other in others)
        return alone and group not in held and ends[group] == at

    def decided(at: int, op: Operation) -> Operation:
        match op:
            case Forward() if op.call.layer.overwrites and not op.call.joined:
                return op._replace(over=ended(op.x[0], at, op.x[1:]))
            case Backward() if op.call.layer.overwrites:
                return op._replace(over=ended(op.dy, at, ()))
            case Accumulate():
                pairs = (op.to, op.x), (op.x, op.to)
                over = (slot for slot, other in pairs if ended(slot, at, [other]))
                return op._replace(over=next(over, None))
        return op

    return [decided(at, op) for at, op in enumerate(listed)]


def _last_uses(ops: Sequence[Operation]) -> dict[Slot, int]:
    """Return the last operation that deals with each slot.

    What is on its way may be read until somebody has waited for its end.
    """
    last: dict[Slot, int] = {}
    lent: dict[Slot, Slot] = {}
    for at, op in enumerate(ops):
        last |= dict.fromkeys((*reads(op), *writes(op)), at)
        match op:
            case Start() if op.hop.move.lends:
                lent[op.y] = op.x
            case Send():
                lent[op.y] = op.x
            case Wait() if op.y in lent:
                last[lent.pop(op.y)] = at
    return last


class _Groups:
    """Put slots together that may hold views of the same array at some time."""

    def __init__(self, ops: Iterable[Operation]) -> None:
        self._parent: dict[Slot, Slot] = {}
        for op in ops:
            for one, other in views(op):
                self._parent[self.of(one)] = self.of(other)

    def of(self, slot: Slot) -> Slot:
        """Return the slot that stands for a slot's group."""
        while slot in self._parent and self._parent[slot] != slot:
            slot = self._parent[slot]
        return slot


def views(op: Operation) -> Iterator[tuple[Slot, Slot]]:
    """Yield (y, x) for each slot y that an operation fills with what may be a view of slot x.

    Where y is written over x, x is not read from then on: that is no view.
    """
    match op:
        case Start() if op.hop.keeps:
            yield op.y, op.x
        case Rows():
            yield op.y, op.x
        case Forward() if not op.call.idle and op.call.views_x:
            yield from ((op.y, x) for x in op.x)
        case Backward() if not op.call.idle and "dx" in op.call.layer.views:
            yield from ((dx, op.dy) for dx in op.dx if dx is not None)
