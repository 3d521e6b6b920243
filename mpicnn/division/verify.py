"""Prove of all ranks' programs together that nothing waits for ever and nothing is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, product
from math import prod
from typing import TYPE_CHECKING

from mpicnn.division.compile import compile
from mpicnn.division.placement import Box, Layout, Shape, box_shape, local_shape, region
from mpicnn.division.plan import Plan
from mpicnn.division.program import (
    Chain,
    Compute,
    Hop,
    MicroBatch,
    Program,
    Redistribute,
    Transfer,
    WeightLayout,
)

if TYPE_CHECKING:
    from mpicnn.models import Model

Place = tuple[int, tuple[int, ...]]
"""A pipeline stage, and coordinates in its grid."""


class BrokenProgramError(Exception):
    """Report programs that do not fit each other: a defect of the package, not of a plan."""


def all_programs(model: Model, plan: Plan, count: int) -> dict[Place, Program]:
    """Return the programs of all ranks for a batch of `count` examples, by stage and coordinates.

    Raises UserError where the plan does not fit the network.
    """
    places = product(range(plan.depth), product(*map(range, plan.grid)))
    return {(stage, coords): compile(model, plan, coords, count, stage) for stage, coords in places}


def check(programs: Mapping[Place, Program]) -> None:
    """Raise BrokenProgramError unless the programs of all ranks fit together.

    What passes cannot hang, and computes every example and every gradient once: each collective is
    begun by all ranks of its group, in the same order and with the same shapes; what one stage
    sends the next receives; every value has the shape that its reader expects; rounds cut the
    batch without gap or overlap; every example has its loss on one rank; every part of a weight
    lives somewhere, and each rank that computes with it learns as often as the others.
    """
    for (stage, coords), program in programs.items():
        _check_rank(program, coords, f"stage {stage}, rank {coords}")
    for stage, ranks in groupby(sorted(programs.items(), key=lambda item: item[0]), _stage_of):
        inside = {coords: program for (_, coords), program in ranks}
        _check_collectives(inside, f"stage {stage}")
        _check_homes(inside, f"stage {stage}")
    _check_transfers(programs)
    _check_losses(programs)


def _demand(met: bool, what: str) -> None:
    if not met:
        raise BrokenProgramError(what)


def _stage_of(item: tuple[Place, Program]) -> int:
    return item[0][0]


def _check_rank(program: Program, coords: tuple[int, ...], where: str) -> None:
    """Check what one rank's program says by itself."""
    parts = range(len(program.micro_batches))
    turns = Counter(program.order)
    _demand(turns == Counter([*(("F", i) for i in parts), *(("B", i) for i in parts)]),
            f"{where}: not every micro-batch goes forward and backward once")  # fmt: skip
    for i in parts:
        before = program.order.index(("F", i)) < program.order.index(("B", i))
        _demand(before, f"{where}: micro-batch {i} goes backward first")
    for micro in program.micro_batches:
        rows = _flow(micro.body, coords, where)
        covered = sorted((part.rows.start, part.rows.stop) for part in micro.rounds)
        if covered:
            ends = [0, *(stop for _, stop in covered)]
            starts = [*(start for start, _ in covered), rows]
            _demand(ends == starts, f"{where}: rounds do not cover the rows of the body's output")
        for part in micro.rounds:
            _flow(part.chain, coords, where)
    for weight in program.weights:
        for route, src, dst in (
            (weight.fetch, weight.home, weight.use),
            (weight.bring, tuple(p.dual for p in weight.use), weight.home),
        ):
            shape = local_shape(weight.param.shape, src, coords)
            for hop in route:
                shape = _hop(hop, shape, coords, f"{where}: {weight.name}")
            arrives = local_shape(weight.param.shape, dst, coords)
            _demand(shape == arrives, f"{where}: {weight.name} arrives as {shape}, not {arrives}")


def _flow(chain: Chain, coords: tuple[int, ...], where: str) -> int:
    """Follow a chain's value from step to step; return the rows that it ends with."""
    shape: Shape | None = None
    for step in chain.steps:
        at = f"{where}: {step.name}"
        if isinstance(step, Transfer):
            _demand(shape is None or shape == step.shape, f"{at}: sends {step.shape}, has {shape}")
            shape = step.shape
        elif isinstance(step, Redistribute):
            shape = _hop(step.hop, shape, coords, at)
        else:
            fits = shape is None or shape == step.x_shape
            _demand(fits, f"{at}: reads {step.x_shape}, but the value is {shape}")
            _demand(len(step.positions) == step.y_shape[0], f"{at}: positions are not its rows")
            shape = step.y_shape
    ends = local_shape(chain.exit_shape, chain.exit, coords)
    _demand(shape is None or shape == ends, f"{where}: a chain ends as {shape}, not {ends}")
    return ends[0]


def _hop(hop: Hop, shape: Shape | None, coords: tuple[int, ...], where: str) -> Shape:
    """Return the local shape after a hop, which must begin with `shape`."""
    rank = coords[hop.axis]
    here = box_shape(hop.move.src.box(hop.shape, rank))
    _demand(shape is None or shape == here, f"{where}: moves {here}, but the value is {shape}")
    return box_shape(hop.move.dst.box(hop.shape, rank))


@dataclass(frozen=True)
class _Sum:
    """A sum over the ranks that divide a batch, of arrays of these lengths."""

    name: str
    axis: int
    lengths: tuple[int, ...]


def _collectives(program: Program) -> Iterator[tuple[int, object]]:
    """Yield what a rank begins together with others, by axis, chain after chain."""
    for weight in program.weights:
        yield from ((hop.axis, (weight.name, hop)) for hop in (*weight.fetch, *weight.bring))
    for micro in program.micro_batches:
        for chain in _chains(micro):
            for step in chain.steps:
                if isinstance(step, Redistribute):
                    yield step.hop.axis, (step.name, step.hop)
                elif isinstance(step, Compute):
                    forward, backward = step.layer.batch_sums(step.x_shape[1:])
                    for axis in step.sum_axes if (forward or backward) and not step.idle else ():
                        yield axis, _Sum(step.name, axis, (*forward, *backward))


def _chains(micro: MicroBatch) -> Iterable[Chain]:
    return (micro.body, *(part.chain for part in micro.rounds))


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
    """Return how often each weight's gradient is computed in a step."""
    return Counter(
        name
        for micro in program.micro_batches
        for chain in _chains(micro)
        for step in chain.steps
        if isinstance(step, Compute)
        for name in step.weights.values()
    )


def _check_homes(ranks: Mapping[tuple[int, ...], Program], where: str) -> None:
    """Check that the parts of every weight at home cover it, and overlap only where they equal."""
    for index, weight in enumerate(next(iter(ranks.values())).weights):
        boxes = {_home(program.weights[index], coords) for coords, program in ranks.items()}
        items = sum(prod(box_shape(box)) for box in boxes)
        _demand(items == prod(weight.param.shape), f"{where}: {weight.name} lives in {boxes}")


def _home(weight: WeightLayout, coords: tuple[int, ...]) -> Box:
    layout: Layout = weight.home
    box = region(weight.param.shape, layout, coords)
    return box if prod(box_shape(box)) else tuple((0, 0) for _ in box)


def _check_transfers(programs: Mapping[Place, Program]) -> None:
    """Check that what a stage sends forward, the same place in the next one receives."""
    for (stage, coords), program in programs.items():
        behind = programs.get((stage + 1, coords))
        sent = [t.shape for t in _transfers(program) if t.out]
        received = [t.shape for t in _transfers(behind) if not t.out] if behind else []
        _demand(sent == received, f"stage {stage}, rank {coords}: sends {sent}, but the next stage "
                f"receives {received}")  # fmt: skip


def _transfers(program: Program) -> Iterator[Transfer]:
    for micro in program.micro_batches:
        yield from (step for step in micro.body.steps if isinstance(step, Transfer))


def _check_losses(programs: Mapping[Place, Program]) -> None:
    """Check that every example of the batch has its loss on one rank."""
    count = next(iter(programs.values())).count
    found = sorted(int(i) for program in programs.values() for i in program.answers)
    _demand(found == list(range(count)), f"{count} examples, but losses of {found}")
