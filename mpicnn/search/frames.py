"""What a search of plans tries one after another: grids, shares, schemes, ways to synchronise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.division.checks import check_form
from mpicnn.division.compile import compile
from mpicnn.division.idle import leave_idle
from mpicnn.division.plan import SCHEMES, SYNCS, Plan, Shares, equal_shares
from mpicnn.division.presets import preset
from mpicnn.division.propagation import check_batch
from mpicnn.division.stages import cut
from mpicnn.errors import UserError
from mpicnn.forecast.durations import Times, durations
from mpicnn.forecast.machine import Machine

if TYPE_CHECKING:
    from mpicnn.models import Model

MOST_ROUNDS = 16
"""Schemes (b) and (c) have a round per rank: with more, rounds are too short to be worth it."""
MOST_PIPELINED = 16
"""Ranks up to which stages are tried."""
MOST_STAGES = 8
PARTS = (2, 4, 8)
"""Micro-batches for each stage that are tried."""


@dataclass(frozen=True)
class Frame:
    """Hold what all layers of a plan have in common.

    `owner` is the place along the last axis that has what is not divided.
    """

    grid: tuple[int, ...]
    shares: tuple[Shares, ...]
    owner: int = 0
    scheme: str = "a"
    sync: str = "allreduce"

    @property
    def plan(self) -> Plan:
        """Return the plan that names no layer."""
        return Plan(self.grid, self.shares, {}, self.scheme, self.sync, "auto")


def alone(model: Model, batch: int, machine: Machine, itemsize: int) -> Times:
    """Return the seconds of every operation of a step that each rank does alone: (ops, ranks)."""
    one = compile(model, preset("data", model, (1,)), batch)
    found = durations(one, machine.rates, itemsize)
    return np.array([np.broadcast_to(each, len(machine.devices)) for each in found])


def frames(model: Model, batch: int, speed: Times) -> Iterator[Frame]:
    """Yield the frames of plans without stages that the network and the batch allow.

    `speed` are those of the ranks. Grids have one axis, or two whose first divides the batch.
    """
    ranks = len(speed)
    grids = [(ranks,), *((n, ranks // n) for n in range(2, ranks) if ranks % n == 0)]
    for grid in grids:
        owner = int(speed.reshape(-1, grid[-1]).min(axis=0).argmax())
        for shares in divided(grid, speed):
            for scheme, sync in product(SCHEMES, SYNCS):
                if scheme != "a" and not 1 < grid[-1] <= MOST_ROUNDS:
                    continue
                frame = Frame(grid, _some_work(model, batch, grid, shares), owner, scheme, sync)
                if _fits(model, frame.plan, batch):
                    yield frame


def divided(grid: tuple[int, ...], speed: Times) -> list[tuple[Shares, ...]]:
    """Return equal shares, and shares by speed where ranks differ.

    A place along the last axis is as fast as the slowest rank that has it, one along the first as
    all of its ranks together.
    """
    equal = equal_shares(grid)
    table = speed.reshape(-1, grid[-1])
    inner = table.min(axis=0)
    outer = (table.reshape(*grid[:-1], -1).sum(axis=-1),) if len(grid) == 2 else ()
    by_speed = tuple(tuple((each / each.max()).tolist()) for each in (*outer, inner))
    return [equal] if np.allclose(np.concatenate(by_speed), 1) else [by_speed, equal]


def _some_work(
    model: Model, batch: int, grid: tuple[int, ...], shares: tuple[Shares, ...]
) -> tuple[Shares, ...]:
    """Return shares of 0 for ranks for which a batch has no example."""
    plan, _ = leave_idle(model, Plan(grid, shares), batch)
    return plan.shares


def _fits(model: Model, plan: Plan, batch: int) -> bool:
    try:
        check_form(model, plan)
        check_batch(model, plan, batch)
    except UserError:
        return False
    return True


def pipelines(model: Model, batch: int, speed: Times) -> Iterator[Plan]:
    """Yield plans with stages of about equal work, each divided by the batch.

    Batch normalisation takes the whole batch at once, so its networks come as one micro-batch.
    """
    ranks = len(speed)
    if ranks > MOST_PIPELINED:
        return
    for depth in range(2, min(ranks, MOST_STAGES) + 1):
        if ranks % depth:
            continue
        try:
            stages = cut(model, depth)
        except UserError:
            return
        grid = (ranks // depth,)
        for shares in divided(grid, speed):
            for parts in sorted({1, *(depth * each for each in PARTS)}):
                plan = Plan(
                    grid, shares, {}, name="auto", stages=stages, micro_batches=parts
                )  # fmt: skip
                if parts * prod(grid) <= batch and _fits(model, plan, batch):
                    yield plan
