"""Prove of all ranks' programs together that nothing waits for ever and nothing is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, product
from math import prod
from typing import TYPE_CHECKING

from mpicnn.division.compile import DEFAULT, Options, compile
from mpicnn.division.placement import Box, Shape, box_shape, local_shape, region
from mpicnn.division.plan import Plan
from mpicnn.division.program import (
    EXAMPLES,
    Accumulate,
    Backward,
    Call,
    Forward,
    Free,
    Loss,
    Operation,
    Program,
    Receive,
    Rows,
    Send,
    Slot,
    Start,
    Store,
    Sum,
    Update,
    Wait,
    WeightLayout,
)

if TYPE_CHECKING:
    from mpicnn.models import Model

Place = tuple[int, tuple[int, ...]]
"""A pipeline stage, and coordinates in its grid."""


class BrokenProgramError(Exception):
    """Report programs that do not fit each other: a defect of the package, not of a plan."""


def all_programs(
    model: Model, plan: Plan, count: int, options: Options = DEFAULT
) -> dict[Place, Program]:
    """Return the programs of all ranks for a batch of `count` examples, by stage and coordinates.

    Raises UserError where the plan does not fit the network.
    """
    places = product(range(plan.depth), product(*map(range, plan.grid)))
    return {
        (stage, coords): compile(model, plan, coords, count, stage, options)
        for stage, coords in places
    }


def check(programs: Mapping[Place, Program]) -> None:
    """Raise BrokenProgramError unless the programs of all ranks fit together.

    What passes cannot hang, and computes every example and every gradient once: each collective is
    begun by all ranks of its group, in the same order and with the same shapes; what one stage
    sends the next receives; every slot is written before it is read, with the shape that its reader
    expects; what begins ends; every example has its loss on one rank; every part of a weight lives
    somewhere, each gradient is complete before it travels, and each rank that computes with a
    weight learns as often as the others.
    """
    for (stage, coords), program in programs.items():
        _Rank(program, coords, f"stage {stage}, rank {coords}").check()
    for stage, ranks in groupby(sorted(programs.items(), key=lambda item: item[0]), _stage_of):
        inside = {coords: program for (_, coords), program in ranks}
        _check_collectives(inside, f"stage {stage}")
        _check_homes(inside, f"stage {stage}")
    _check_messages(programs)
    _check_losses(programs)


def _demand(met: bool, what: str) -> None:
    if not met:
        raise BrokenProgramError(what)


def _stage_of(item: tuple[Place, Program]) -> int:
    return item[0][0]


class _Rank:
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
        _demand(not self.coming, f"{self.where}: begun, but not waited for: slots {self.coming}")
        for weight in self.program.weights:
            if weight.name in self.program.grads:
                slot = self.program.grads[weight.name]
                shape = local_shape(weight.param.shape, weight.home, self.coords)
                updated = any(
                    isinstance(op, Update) and weight.name in op.grads for op in self.program.ops
                )
                found = self.there.get(slot)
                at = f"{self.where}: the gradient of {weight.name}"
                _demand(updated or found == shape, f"{at} arrives as {found}, not {shape}")

    def _read(self, slot: Slot, at: str, shape: object = None) -> object:
        if slot == EXAMPLES:
            return None
        if slot not in self.there:
            raise BrokenProgramError(f"{self.where}: {at} reads slot {slot}, which holds nothing")
        found = self.there[slot]
        if slot in self.stored:
            rows = self.stored.pop(slot)
            whole = isinstance(found, tuple) and rows == found[0]
            _demand(whole, f"{self.where}: {at} reads {found}, of which {rows} rows are stored")
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
                _demand(op.y in self.coming, f"{self.where}: {op.name} waits for nothing")
                self.there[op.y] = self.coming.pop(op.y)
            case Forward() | Backward():
                self._compute(op)
            case Loss():
                shape = self._read(op.x, "loss")
                fits = not isinstance(shape, tuple) or shape[0] == len(op.labels)
                _demand(fits, f"{self.where}: the loss has {len(op.labels)} labels for {shape}")
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
                self.there[op.y] = self._read(op.x, "sum", self._read(op.to, "sum"))
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
            _demand(fits, f"{self.where}: {call.name}: positions are not its rows")
            self.there[op.y] = call.y_shape
            if op.saved is not None:
                self.there[op.saved] = call
        else:
            self._back(op, call)

    def _back(self, op: Backward, call: Call) -> None:
        self._read(op.dy, call.name, call.y_shape)
        _demand(self._read(op.saved, call.name) is call, f"{self.where}: {call.name}: another run")
        for dx, shape in zip(op.dx, call.x_shapes, strict=True):
            if dx is not None:
                self.there[dx] = shape
        for short, slot in op.grads.items():
            late = f"{self.where}: {call.name}.{short}: a gradient sets out before it is complete"
            _demand(slot not in self.sent, late)
            self.grads.add(slot)
            self.there[slot] = self.there[op.use[short]]


@dataclass(frozen=True)
class _BatchSum:
    """A sum over the ranks that divide a batch, of arrays of these lengths."""

    name: str
    axis: int
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class _Bucket:
    """A sum of gradients."""

    names: tuple[str, ...]


def _collectives(program: Program) -> Iterator[tuple[int, object]]:
    """Yield what a rank begins together with others, by axis, in order."""
    for op in program.ops:
        match op:
            case Start() if not op.hop.move.local:
                yield op.hop.axis, (op.name, op.hop)
            case Sum():
                yield from ((axis, _Bucket(op.names)) for axis in op.axes)
            case Forward() | Backward() if not op.call.idle:
                call = op.call
                lengths = call.layer.batch_sums(call.fed)[isinstance(op, Backward)]
                if lengths and (isinstance(op, Forward) or call.need_dx):
                    yield from ((a, _BatchSum(call.name, a, lengths)) for a in call.sum_axes)


def _check_collectives(ranks: Mapping[tuple[int, ...], Program], where: str) -> None:
    """Check that the ranks along every axis begin the same collectives in the same order."""
    axes = len(next(iter(ranks)))
    found = {coords: list(_collectives(program)) for coords, program in ranks.items()}
    for axis in range(axes):
        for coords in ranks:
            first = (*coords[:axis], 0, *coords[axis + 1 :])
            mine, theirs = ([what for a, what in found[c] if a == axis] for c in (coords, first))
            _demand(mine == theirs, f"{where}: {coords} and {first} begin other collectives: "
                    f"{_difference(mine, theirs)}")  # fmt: skip
    learnt = [[w.name for w in program.weights] for program in ranks.values()]
    _demand(all(names == learnt[0] for names in learnt), f"{where}: ranks hold other weights")
    counts = [_contributions(program) for program in ranks.values()]
    _demand(all(c == counts[0] for c in counts), f"{where}: a gradient is not complete everywhere")


def _difference(mine: list[object], theirs: list[object]) -> str:
    pairs = zip(mine, theirs, strict=False)
    odd = next((pair for pair in pairs if pair[0] != pair[1]), (len(mine), len(theirs)))
    return f"{odd[0]} and {odd[1]}"


def _contributions(program: Program) -> Counter[str]:
    """Return how often each weight is used forward, and its gradient computed, in a step."""
    return Counter(
        f"{name} {type(op).__name__}"
        for op in program.ops
        if isinstance(op, Forward | Backward)
        for name in op.call.weights.values()
    )


def _check_homes(ranks: Mapping[tuple[int, ...], Program], where: str) -> None:
    """Check that the parts of every weight at home cover it, and overlap only where they equal."""
    for index, weight in enumerate(next(iter(ranks.values())).weights):
        boxes = {_home(program.weights[index], coords) for coords, program in ranks.items()}
        items = sum(prod(box_shape(box)) for box in boxes)
        _demand(items == prod(weight.param.shape), f"{where}: {weight.name} lives in {boxes}")


def _home(weight: WeightLayout, coords: tuple[int, ...]) -> Box:
    box = region(weight.param.shape, weight.home, coords)
    return box if prod(box_shape(box)) else tuple((0, 0) for _ in box)


def _check_messages(programs: Mapping[Place, Program]) -> None:
    """Check that what a stage sends, the same place in the next one, or the one before, receives.

    Values are told apart by number; those of one number arrive in the order in which they are sent.
    """
    for (stage, coords), program in programs.items():
        for back in (False, True):
            other = programs.get((stage - 1 if back else stage + 1, coords))
            sent, received = (
                _messages(of, kind, back) if of else {}
                for of, kind in ((program, Send), (other, Receive))
            )
            _demand(sent == received, f"stage {stage}, rank {coords}: sends {sent}, but the other "
                    f"stage receives {received}")  # fmt: skip


def _messages(program: Program, kind: type, back: bool) -> dict[int, list[Shape]]:
    found: defaultdict[int, list[Shape]] = defaultdict(list)
    for op in program.ops:
        if isinstance(op, Send | Receive) and isinstance(op, kind) and op.back == back:
            found[op.number].append(op.shape)
    return dict(found)


def _check_losses(programs: Mapping[Place, Program]) -> None:
    """Check that every example of the batch has its loss on one rank."""
    count = next(iter(programs.values())).count
    found = sorted(int(i) for program in programs.values() for i in program.answers)
    _demand(found == list(range(count)), f"{count} examples, but losses of {found}")
