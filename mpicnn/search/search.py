"""Find the plan under which a step is forecast to be shortest, and how much shorter any could be.

Frame by frame (`frames`), all plans are laid out as paths (`trellis`). The cheapest ones under
additive costs, and those that the bound meets (`bound`), are timed by the timeline of the programs
that would run, beside the presets. The report says what the best one takes, and below what no plan
of the frames can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, prod
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.division.checks import check_form
from mpicnn.division.compile import Options, compile_all
from mpicnn.division.idle import leave_idle
from mpicnn.division.plan import Plan
from mpicnn.division.presets import BRANCHES, PRESETS, preset
from mpicnn.division.program import GlobalProgram
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.durations import Times
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.memory import rank_bytes
from mpicnn.forecast.timeline import Timeline, timeline
from mpicnn.precision import dtype_of
from mpicnn.search.bound import bound
from mpicnn.search.frames import Frame, alone, divided, frames, pipelines
from mpicnn.search.prices import Prices
from mpicnn.search.states import States
from mpicnn.search.trellis import Path, Trellis, build

if TYPE_CHECKING:
    from mpicnn.models import Model
    from mpicnn.settings.plan_groups import PlanChoice

PATHS = 6
"""Cheapest paths of a frame that are timed."""
MET = 4
"""Paths that a bound met last that are timed."""
SQUEEZES = (1e-10, 1e-9, 1e-8)
"""Seconds that a byte of the fullest rank is charged, where memory is short."""


@dataclass(frozen=True)
class Task:
    """Say what is to be trained on which machine, `itemsize` being the bytes of a number.

    `memory` are the bytes that every rank may take, (ranks,), inf where nothing limits them.
    """

    model: Model
    batch: int
    machine: Machine
    itemsize: int
    options: Options = field(default_factory=Options)
    memory: Times | None = None

    @property
    def ranks(self) -> int:
        """Return how many ranks there are."""
        return len(self.machine.devices)


def task_of(
    model: Model,
    asked: PlanChoice,
    batch: int,
    precision: str,
    machine: Machine,
    memory: Times | None = None,
) -> Task:
    """Return the task of training a network with the settings' buckets."""
    itemsize = dtype_of(precision).itemsize
    bucket = max(1, int(asked.bucket_mb * 1e6) // itemsize)
    return Task(model, batch, machine, itemsize, Options(bucket), memory)


@dataclass(frozen=True)
class Candidate:
    """Hold a plan, what a step of it is forecast to take, and the MB that a rank sends at most."""

    plan: Plan
    timeline: Timeline
    sent: float

    @property
    def seconds(self) -> float:
        """Return how long a step takes."""
        return self.timeline.seconds


@dataclass(frozen=True)
class Found:
    """Hold the candidates that fit, the fastest first, and what bounds them.

    No plan of the `frames` whose bounds were found, `looked` of them, takes less than `bound` s. No
    plan of any kind takes less than `floor`, in which all ranks work without pause and nothing
    travels. `bytes` are what the ranks of the first candidate need, (ranks,).
    """

    candidates: tuple[Candidate, ...]
    bound: float
    floor: float
    looked: int
    frames: int
    bytes: Times

    @property
    def best(self) -> Candidate:
        """Return the fastest candidate."""
        return self.candidates[0]

    @property
    def complete(self) -> bool:
        """Say whether the bound holds for all frames."""
        return self.looked == self.frames

    @property
    def gap(self) -> float:
        """Return by how much the best one is slower than the bound, as a part of it."""
        return self.best.seconds / (self.bound if self.complete else self.floor) - 1


class Search:
    """Collect candidates for a task, and the bounds of frames."""

    def __init__(self, task: Task) -> None:
        self.task = task
        times = alone(task.model, task.batch, task.machine, task.itemsize)
        self.speed: Times = 1 / times.sum(axis=0)
        # each layer costs at least this much of the ranks' time, weighted by their speeds
        self.floor = float((self.speed / self.speed.sum() * times).min(axis=1).sum())
        self.found: dict[str, Candidate] = {}
        self.bounds: list[float] = []

    def presets(self) -> None:
        """Time the presets, with shares by speed and with equal ones."""
        for shares in divided((self.task.ranks,), self.speed):
            for plan in presets(self.task.model, self.task.ranks, shares):
                self.time(plan)

    def time(self, plan: Plan) -> Candidate | None:
        """Add a plan to the candidates; return None where it does not fit network or batch."""
        task = self.task
        try:
            check_form(task.model, plan)
            plan, _ = leave_idle(task.model, plan, task.batch)
            check_batch(task.model, plan, task.batch)
            key = repr((plan.grid, plan.shares, plan.layers, plan.scheme, plan.sync, plan.stages,
                        plan.micro_batches))  # fmt: skip
            if key in self.found:
                return self.found[key]
            programs = compile_all(task.model, plan, task.batch, task.options)
        except UserError:
            return None
        found = Candidate(
            plan, timeline(programs, task.machine, task.itemsize), _sent(programs, task.itemsize)
        )
        return self.found.setdefault(key, found)

    def frame(self, frame: Frame) -> None:
        """Look for plans of a frame, and bound all of them."""
        task = self.task
        trellis = build(States(Prices(task.model, frame, task.batch, task.machine, task.itemsize)))
        if trellis is None:
            self.bounds.append(inf)
            return
        least = min((each.seconds for each in self.found.values()), default=inf)
        limit = bound(trellis, self.speed, enough=least)
        if trellis.exact:
            self.bounds.append(limit.seconds)
        for path in self._worth(trellis, limit.paths):
            self.time(trellis.plan(path))

    def _worth(self, trellis: Trellis, met: Sequence[Path]) -> Iterator[Path]:
        strata = len(trellis.strata)
        yield from trellis.several([trellis.additive] * strata, PATHS)
        yield from met[-MET:]
        if self.task.memory is not None:
            for price in SQUEEZES:
                yield from trellis.several([trellis.additive + price * trellis.held] * strata, 2)

    def ranked(self) -> Iterator[Candidate]:
        """Yield the candidates that are timed so far, the fastest first."""
        yield from sorted(self.found.values(), key=lambda each: each.seconds)

    def bytes(self, candidate: Candidate) -> Times:
        """Return what every rank needs for a step of a candidate: (ranks,)."""
        task = self.task
        programs = compile_all(task.model, candidate.plan, task.batch, task.options)
        return np.array(
            [
                rank_bytes(program, place, task.itemsize)
                for program in programs
                for place in range(prod(program.grid))
            ]
        )


def search(task: Task, seconds: float = 10.0) -> Found:
    """Return the best plans for a task, looked for in about so many seconds at most.

    Raises UserError where none fits the memory, or the network.
    """
    until = monotonic() + seconds
    run = Search(task)
    run.presets()
    for plan in pipelines(task.model, task.batch, run.speed):
        run.time(plan)
        if monotonic() > until:
            break
    able = in_order(frames(task.model, task.batch, run.speed))
    for at, frame in enumerate(able):
        if at and monotonic() > until:
            break
        run.frame(frame)
    fitting, needed = _fitting(run)
    bounds = len(run.bounds)
    # a floor may be above what is reached by its rounding alone
    floor = min(run.floor, fitting[0].seconds)
    least = min([*run.bounds, fitting[0].seconds])
    return Found(tuple(fitting), max(least, floor), floor, bounds, len(able), needed)


def presets(model: Model, ranks: int, shares: tuple[tuple[float, ...], ...]) -> Iterator[Plan]:
    """Yield the presets on one axis with these shares, in every scheme that they have."""
    for name in (*PRESETS, BRANCHES):
        for scheme in "abc" if name == "owt" else "a":
            try:
                yield preset(name, model, (ranks,), shares, scheme)
            except UserError:
                continue


def in_order(able: Iterator[Frame]) -> list[Frame]:
    """Return frames, first those that are most likely to have the best plan.

    These have the batch at once, shares by speed, and few axes.
    """
    listed = list(able)
    shares = {each: at for at, each in enumerate(dict.fromkeys(f.shares for f in listed))}
    return sorted(
        listed, key=lambda f: (f.scheme != "a", len(f.grid), f.sync, shares[f.shares], f.scheme)
    )


def _fitting(run: Search) -> tuple[list[Candidate], Times]:
    """Return the candidates that fit the ranks' memory, and what the first of them needs.

    Those behind the first that are never used are not measured.
    """
    limit = run.task.memory
    ranked = list(run.ranked())
    if limit is None:
        return ranked, run.bytes(ranked[0])
    over: list[Times] = []
    kept: list[Candidate] = []
    needed: Times | None = None
    for each in ranked:
        needs = run.bytes(each)
        if (needs <= limit).all():
            kept.append(each)
            needed = needs if needed is None else needed
        else:
            over.append(needs)
    if needed is None:
        least = min(over, key=lambda needs: float((needs / limit).max()))
        worst = int((least / limit).argmax())
        raise UserError(
            f"memory {limit[worst] / 1e9:.3g} GB: no plan that was found fits; the least that one "
            f"needs is {least[worst] / 1e9:.3g} GB on rank {worst}; use a smaller batch or more "
            "ranks"
        )
    return kept, needed


def _sent(programs: Sequence[GlobalProgram], itemsize: int) -> float:
    """Return the most bytes that a rank sends in a step."""
    return max(
        float(
            np.sum([cost.work.bytes_sent for cost in step_costs(program, itemsize)], axis=0).max()
        )
        for program in programs
    )
