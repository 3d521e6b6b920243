"""Prove of all ranks' programs together that nothing waits for ever and nothing is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, product
from math import prod
from typing import TYPE_CHECKING

from mpicnn.division.compile import DEFAULT, Options, compile
from mpicnn.division.operations import (
    Backward,
    Forward,
    Receive,
    Send,
    Start,
    Sum,
)
from mpicnn.division.placement import Box, Shape, box_shape, region
from mpicnn.division.plan import Plan
from mpicnn.division.program import Program, WeightLayout
from mpicnn.division.verify_rank import BrokenProgramError, RankCheck, demand

if TYPE_CHECKING:
    from mpicnn.models import Model

__all__ = ["BrokenProgramError", "Place", "all_programs", "check"]

Place = tuple[int, tuple[int, ...]]
"""A pipeline stage, and coordinates in its grid."""


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
        RankCheck(program, coords, f"stage {stage}, rank {coords}").check()
    for stage, ranks in groupby(sorted(programs.items(), key=lambda item: item[0]), _stage_of):
        inside = {coords: program for (_, coords), program in ranks}
        _check_collectives(inside, f"stage {stage}")
        _check_homes(inside, f"stage {stage}")
    _check_messages(programs)
    _check_losses(programs)


def _stage_of(item: tuple[Place, Program]) -> int:
    return item[0][0]


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
                lengths = call.batch_sums[isinstance(op, Backward)]
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
            demand(mine == theirs, f"{where}: {coords} and {first} begin other collectives: "
                    f"{_difference(mine, theirs)}")  # fmt: skip
    learnt = [[w.name for w in program.weights] for program in ranks.values()]
    demand(all(names == learnt[0] for names in learnt), f"{where}: ranks hold other weights")
    counts = [_contributions(program) for program in ranks.values()]
    demand(all(c == counts[0] for c in counts), f"{where}: a gradient is not complete everywhere")


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
        demand(items == prod(weight.param.shape), f"{where}: {weight.name} lives in {boxes}")


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
            demand(sent == received, f"stage {stage}, rank {coords}: sends {sent}, but the other "
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
    demand(found == list(range(count)), f"{count} examples, but losses of {found}")
