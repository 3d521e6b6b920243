"""How a plan divides a network, and what a step costs every rank, as text."""

from __future__ import annotations

from bisect import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.compile import compile_all
from mpicnn.division.placement import coordinates, weighted_bounds
from mpicnn.division.plan import INPUT, LOSS, Plan
from mpicnn.division.program import GlobalProgram
from mpicnn.division.propagation import LayerDivision, propagate
from mpicnn.division.verify import check
from mpicnn.forecast.cost import LayerCost, step_costs
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.memory import step_peak
from mpicnn.forecast.timeline import Timeline, timeline
from mpicnn.models.freezing import frozen_text
from mpicnn.models.model import layer_of
from mpicnn.precision import dtype_of
from mpicnn.text import align, figure

if TYPE_CHECKING:
    from mpicnn.models import Model

RANKS_LISTED = 16


def plan_table(
    model: Model,
    plan: Plan,
    batch: int,
    precision: str = "float32",
    machine: Machine | None = None,
) -> str:
    """Return the plan as text: a row per layer, a row per rank.

    Parameters are items; GFLOP and MB are of one training step, forward and backward, MB sent the
    most that one rank sends, MB peak what `step_peak` counts. With a `machine` there are the ms
    that a layer takes, its moves included: the most of all ranks.
    """
    programs, itemsize = compile_all(model, plan, batch), dtype_of(precision).itemsize
    check(programs)
    costs = [step_costs(program, itemsize) for program in programs]
    expected = timeline(programs, machine, itemsize) if machine else None
    rows = _layer_rows(model, plan, batch, costs, expected)
    if plan.stages:
        rows = _with_stages(model, plan, rows)
    grid = " x ".join(map(str, (plan.depth, *plan.grid) if plan.stages else plan.grid))
    title = (
        f"{model.name} under plan {plan.name} on {grid} rank(s), batch {batch}, {precision}, "
        f"scheme ({plan.scheme}), {plan.sync}"
    )
    if plan.micro_batches > 1:
        title += f", {plan.micro_batches} micro-batches"
    if plan.stages:
        title += f" ({plan.order})"
    if model.frozen:
        title += f", {frozen_text(model)} frozen"
    left = 4 if plan.stages else 3
    ranks = _rank_rows(costs, programs, itemsize, expected)
    lines = [title, "", *_table(rows, left), "", *_table(ranks, 1)]
    if expected:
        speed = batch / expected.seconds
        lines += ["", f"one step: {1e3 * expected.seconds:.4g} ms, {figure(speed)} images/s"]
    return "\n".join(lines)


def _layer_rows(
    model: Model,
    plan: Plan,
    batch: int,
    costs: list[list[LayerCost]],
    expected: Timeline | None,
) -> list[tuple[str, ...]]:
    """Return the head and a row for each layer, input and loss, and for what is of no layer."""
    divisions = propagate(model, plan)
    names = {cost.name for stage in costs for cost in stage} | {INPUT}
    order = [INPUT, *(name for name, _ in model.layers), LOSS]
    head = ("layer", "split", "shares", "parameters", "GFLOP", "MB sent")
    took = expected.by_layer() if expected else {}
    rows: list[tuple[str, ...]] = [(*head, "ms") if expected else head]
    params: Counter[str] = Counter()
    for full, spec in model.param_specs().items():
        params[layer_of(full)] += prod(spec.shape)
    for name in sorted((names | set(took)) & set(order), key=order.index):
        work = [cost.work for stage in costs for cost in stage if cost.name == name]
        flops = sum(w.flops.sum() for w in work)
        sent = max((w.bytes_sent.max() for w in work), default=0.0)
        rows.append(
            (
                name,
                divisions[name].split,
                _shares(model, divisions[name], name, batch),
                _blank(params[name], f"{params[name]:,}"),
                _blank(flops, f"{flops / 1e9:.3f}"),
                _blank(sent, f"{sent / 1e6:.3f}"),
                *_ms(took, name),
            )
        )
    for name in (each for each in took if each not in order):
        rows.append((name, *[""] * (len(head) - 1), *_ms(took, name)))
    return rows


def _ms(took: Mapping[str, NDArray[np.float64]], name: str) -> tuple[str, ...]:
    """Return what a layer takes the slowest rank, as a column where there is one."""
    if not took:
        return ()
    most = took[name].max() if name in took else 0.0
    return (_blank(most, f"{1e3 * most:.3f}"),)


def _rank_rows(
    costs: list[list[LayerCost]],
    programs: list[GlobalProgram],
    itemsize: int,
    expected: Timeline | None,
) -> list[tuple[str, ...]]:
    """Return the head and a row for each rank, or for several that are alike."""
    head = ("rank", "parameters", "GFLOP", "MB sent", "messages", "MB peak")
    kinds = expected.by_category() if expected else {}
    rows: list[tuple[str, ...]] = [(*head, *(f"{kind} ms" for kind in kinds))]
    held = _by_rank([[cost.held for cost in stage] for stage in costs])
    flops, sent, messages = (
        _by_rank([[getattr(cost.work, what) for cost in stage] for stage in costs])
        for what in ("flops", "bytes_sent", "messages")
    )
    for rank in _listed(held.size):
        stage, place = divmod(rank, held.size // len(programs))
        coords = coordinates(place, programs[stage].grid)
        peak = step_peak(programs[stage].at(coords), coords, itemsize)
        rows.append(
            (
                str(rank),
                f"{held[rank]:,.0f}",
                f"{flops[rank] / 1e9:.3f}",
                f"{sent[rank] / 1e6:.3f}",
                f"{messages[rank]:.0f}",
                f"{peak.bytes / 1e6:.1f}",
                *(f"{1e3 * each[rank]:.3f}" for each in kinds.values()),
            )
        )
    return rows


def _by_rank(stages: Sequence[Sequence[NDArray[np.float64]]]) -> NDArray[np.float64]:
    """Return the sums over all layers, of the ranks of all stages one after another."""
    return np.concatenate([np.sum(layers, axis=0) for layers in stages])


def _with_stages(
    model: Model, plan: Plan, rows: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Return the rows of layers with the number of their pipeline stage in front."""
    names = [name for name, _ in model.layers]
    starts = [names.index(name) for name in plan.stages]
    stage_of = {name: bisect(starts, at) for at, name in enumerate(names)}
    stage_of |= {INPUT: 0, LOSS: len(starts)}
    head, *others = rows
    return [("stage", *head), *((str(stage_of[row[0]]), *row) for row in others)]


def _listed(ranks: int) -> list[int]:
    """Return the ranks to show: all of a few, the first ones and the last of many."""
    if ranks <= RANKS_LISTED:
        return list(range(ranks))
    return [*range(RANKS_LISTED - 1), ranks - 1]


def _blank(value: float, text: str) -> str:
    return text if value else ""


def _shares(model: Model, division: LayerDivision, name: str, batch: int) -> str:
    """Return how many items of the divided index every rank of each axis has."""
    parts = []
    for row, weights in zip(division.rows, division.shares, strict=True):
        length = row.length(batch, *_channels(model, name), division.groups)
        if row.alone:
            parts.append(f"{length} on {f'rank {row.owner}' if row.owner else 'the first'}")
        elif row.divides:
            bounds = weighted_bounds(length, weights, row.least)
            parts.append(_run_lengths([hi - lo for lo, hi in pairwise(bounds)]))
        else:
            parts.append("all on each")
    return " / ".join(parts)


def _channels(model: Model, name: str) -> tuple[int, int]:
    """Return the numbers of a layer's input and output channels."""
    names = [INPUT, *(other for other, _ in model.layers), LOSS]
    fed = [shape[0] if isinstance(shape[0], tuple) else shape for shape in model.fed]
    before = [model.input_shape, *fed, model.shapes[-1]]
    behind = [model.input_shape, *model.shapes[1:], model.shapes[-1]]
    at = names.index(name)
    return before[at][0], behind[at][0]


def _run_lengths(counts: Sequence[int]) -> str:
    """Return "16 x 4" for four equal shares, "43+21" for two unequal ones, shortened if long."""
    if len(set(counts)) == 1 and len(counts) > 1:
        return f"{counts[0]} x {len(counts)}"
    text = "+".join(map(str, counts))
    return text if len(text) <= 28 else f"{min(counts)}..{max(counts)} x {len(counts)}"


def _table(rows: Sequence[tuple[str, ...]], left: int) -> list[str]:
    head, *lines = align(rows, left)
    return [head, "-" * max(map(len, (head, *lines))), *lines]
