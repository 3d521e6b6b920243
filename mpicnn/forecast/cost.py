"""What every step of a program computes, touches and sends, from shapes and moves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from mpicnn.division.move import SUM
from mpicnn.division.placement import local_shape
from mpicnn.division.program import Compute, Hop, Program, Step, Transfer, WeightLayout
from mpicnn.division.work import layer_work


@dataclass(frozen=True)
class Work:
    """Count what one rank does: FLOP (a multiply-add is 2), bytes touched in memory, bytes sent to
    other ranks, and collectives taken part in."""

    flops: float = 0.0
    bytes_touched: float = 0.0
    bytes_sent: float = 0.0
    messages: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.bytes_touched + other.bytes_touched,
            self.bytes_sent + other.bytes_sent,
            self.messages + other.messages,
        )


@dataclass(frozen=True)
class LayerCost:
    """Hold what a layer costs one rank in one step; `held` are the items of its parameters here."""

    name: str
    work: Work
    held: int


def step_costs(
    program: Program, grid: Sequence[int], coords: Sequence[int], itemsize: int
) -> list[LayerCost]:
    """Return the cost of a training step, layer by layer, for the rank at `coords`.

    Moves before a layer, the sums over its divided batch, and its parameters' journeys count for
    the layer. Bytes agree with what `Group.sent` counts in the same step.
    """
    found: list[tuple[str, Work]] = []
    here = {w.name: prod(local_shape(w.param.shape, w.use, coords)) for w in program.weights}
    for micro in program.micro_batches:
        for chain, back_to in micro.passes:
            for at, step in enumerate(chain.steps):
                found.append((step.name, _step(step, at >= back_to, here, grid, coords, itemsize)))
    for weight in program.weights:
        found.append((weight.name.rsplit(".", 1)[0], _weight(weight, grid, coords, itemsize)))
    held: dict[str, int] = {}
    for weight in program.weights:
        if weight.buffer:
            continue
        layer = weight.name.rsplit(".", 1)[0]
        items = prod(local_shape(weight.param.shape, weight.home, coords))
        held[layer] = held.get(layer, 0) + items
    names = list(dict.fromkeys(name for name, _ in found))
    totals = {name: sum((w for n, w in found if n == name), Work()) for name in names}
    return [LayerCost(name, totals[name], held.get(name, 0)) for name in names]


def _step(
    step: Step, back: bool, here: dict[str, int],
    grid: Sequence[int], coords: Sequence[int], itemsize: int,
) -> Work:  # fmt: skip
    if isinstance(step, Compute):
        return _compute(step, back, here, grid, itemsize)
    if isinstance(step, Transfer):
        sends = step.out or back
        return Work(bytes_sent=sends * prod(step.shape) * itemsize, messages=sends)
    work = _hop(step.hop, grid, coords, itemsize)
    if back:
        adjoint = replace(step.hop, move=step.hop.move.adjoint)
        work += _hop(adjoint, grid, coords, itemsize)
    return work


def _hop(hop: Hop, grid: Sequence[int], coords: Sequence[int], itemsize: int) -> Work:
    items = hop.move.items_sent(hop.shape, grid[hop.axis], coords[hop.axis])
    return Work(bytes_sent=items * itemsize, messages=not hop.move.local)


def _sum(length: int, ranks: int, itemsize: int) -> Work:
    return Work(bytes_sent=SUM.items_sent((length,), ranks, 0) * itemsize, messages=1)


def _compute(
    step: Compute, back: bool, here: dict[str, int], grid: Sequence[int], itemsize: int
) -> Work:
    contraction = step.layer.kind == "contraction"
    weights = {short: here[name] for short, name in step.weights.items()}
    once = layer_work(step.layer, step.x_shape, step.y_shape, weights)
    over = 1 + back - (step.joined and not contraction)
    items = over * once.activations + (2 * back + 1) * once.weights
    work = Work(bytes_touched=items * itemsize)
    if step.idle:
        return work
    forward, backward = step.layer.batch_sums(step.x_shape[1:])
    for length in (*forward, *(backward if back and not step.first else ())):
        for axis in step.sum_axes:
            work += _sum(length, grid[axis], itemsize)
    return work + Work(flops=once.flops(1 + back + (back and not step.first)))


def _weight(
    weight: WeightLayout, grid: Sequence[int], coords: Sequence[int], itemsize: int
) -> Work:
    if weight.buffer:
        return Work()
    work = Work()
    for hop in weight.fetch:
        work += _hop(hop, grid, coords, itemsize)
    if weight.summed:
        ranks = prod(grid[axis] for axis in weight.summed)
        return work + _sum(prod(weight.bring[0].shape), ranks, itemsize)
    for hop in weight.bring:
        work += _hop(hop, grid, coords, itemsize)
    return work
