"""What a training step takes on more and more nodes of a cluster, and what holds it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.division.checks import check_form
from mpicnn.division.compile import Options, compile_all
from mpicnn.division.idle import leave_idle
from mpicnn.division.plan import Plan
from mpicnn.division.planfile import load_plan
from mpicnn.division.presets import preset
from mpicnn.division.program import GlobalProgram
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError
from mpicnn.forecast.cluster import Cluster
from mpicnn.forecast.durations import Times, durations
from mpicnn.forecast.machine import Link, Machine
from mpicnn.forecast.memory import rank_bytes
from mpicnn.forecast.timeline import Timeline, label, timeline
from mpicnn.precision import dtype_of
from mpicnn.settings.choices import SimulatedShares as Shares

if TYPE_CHECKING:
    from mpicnn.models import Model
    from mpicnn.settings.plan_groups import PlanChoice

MOST_EXAMPLES = 1 << 25
"""For larger batches the numbers of their examples alone take gigabytes."""


@dataclass(frozen=True)
class Question:
    """Say what is to be trained, and how the work is divided.

    `batch` are the examples of a step: of all nodes, or, if `weak`, of each. `shares` of ranks are
    "measured", in proportion to their rates of convolution, which is what training measures
    (Marques, eq. 1), by their "speed" in the whole network, or "equal". `asked` says the rest of
    the plan, and its `grid` may leave one length open ("x4", "2x"). `seed` draws the speeds of
    nodes that vary.
    """

    model: Model
    asked: PlanChoice
    batch: int
    precision: str = "float32"
    weak: bool = False
    shares: Shares = "measured"
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """Say what a step of `batch` examples takes on `nodes` nodes of a cluster, s.

    `convolution`, `communication` (with waiting) and `other` are those of the rank that computes
    longest. `power` is the speed of all ranks if nothing were lost: one over the seconds in which
    they would do the step of `Question.batch` examples together. `watts` are 0 where they are not
    known. `idle` is for how many ranks a layer has nothing; `memory` holds, for classes whose nodes
    have too little, the bytes that a node needs for arrays, and those that it has.
    """

    nodes: int
    ranks: int
    batch: int
    seconds: float
    convolution: float
    communication: float
    other: float
    power: float
    watts: float
    idle: Mapping[str, int]
    memory: Mapping[str, tuple[float, float]]

    @property
    def speed(self) -> float:
        """Return the images per second."""
        return self.batch / self.seconds

    @property
    def joules(self) -> float:
        """Return the energy of a step: nodes take their watts while they wait, too."""
        return self.watts * self.seconds


@dataclass(frozen=True)
class Loss:
    """Say how long a step takes beyond the time that evenly shared work would take, s.

    `between` and `inside` are what the links cost: so much shorter is the step without them.
    `uneven` is the rest: what the rank that computes longest does beyond its part, by layer, and,
    under "", what it waits for others though links are free.
    """

    between: float
    inside: float
    uneven: Mapping[str, float]


class Simulation:
    """Forecast steps on the first nodes of a cluster."""

    def __init__(self, question: Question, cluster: Cluster) -> None:
        self.question, self.cluster = question, cluster
        self.itemsize = dtype_of(question.precision).itemsize
        asked = question.asked
        bucket = int(1e6 * asked.bucket_mb) // self.itemsize
        self.options = Options(max(1, bucket))

    def point(self, nodes: int) -> Point:
        """Return what a step takes on the first `nodes` nodes.

        Raises UserError where the plan does not fit network, batch or ranks.
        """
        machine = self.cluster.machine(nodes, self.question.seed)
        plan, idle, programs = self._divided(machine, nodes)
        found = timeline(programs, machine, self.itemsize)
        split, slowest = _slowest(found)
        return Point(
            nodes, len(machine.devices), self._batch(nodes), found.seconds,
            split["convolution"][slowest], split["communication"][slowest],
            split["other"][slowest], float(self._power(machine).sum()), self.cluster.watts(nodes),
            idle, self._short(nodes, machine, plan, programs),
        )  # fmt: skip

    def loss(self, nodes: int) -> Loss:
        """Return what keeps the first `nodes` nodes from dividing the time among them."""
        machine = self.cluster.machine(nodes, self.question.seed)
        plan, _, programs = self._divided(machine, nodes)
        alike = replace(machine, between=Link())
        free = replace(alike, inside=Link())
        whole, near, bare = (
            timeline(programs, each, self.itemsize) for each in (machine, alike, free)
        )
        return Loss(
            whole.seconds - near.seconds,
            near.seconds - bare.seconds,
            self._uneven(plan, machine, bare, nodes),
        )

    def _uneven(self, plan: Plan, machine: Machine, bare: Timeline, nodes: int) -> dict[str, float]:
        _, slowest = _slowest(bare)
        power = self._power(machine)
        part = power[slowest] / power.sum() * self._batch(nodes) / self.question.batch
        computed = tuple(each for each in bare.intervals if each.category != "communication")
        busy = replace(bare, intervals=computed).by_layer()
        took = {name: float(times[slowest]) for name, times in busy.items()}
        fair = {name: float(times[slowest]) * part for name, times in self._alone(machine).items()}
        waiting = {"": bare.seconds - sum(took.values())}
        if plan.stages:  # a rank has some of the layers only
            return waiting | {"its stage": sum(took.values()) - sum(fair.values())}
        return waiting | {name: took.get(name, 0.0) - each for name, each in fair.items()}

    def _batch(self, nodes: int) -> int:
        return self.question.batch * (nodes if self.question.weak else 1)

    def _divided(
        self, machine: Machine, nodes: int
    ) -> tuple[Plan, dict[str, int], list[GlobalProgram]]:
        """Return the plan, how many ranks it leaves idle in which layers, and its programs."""
        question, batch = self.question, self._batch(nodes)
        if batch > MOST_EXAMPLES:
            raise UserError(
                f"nodes {nodes}: a batch of {batch}, expected at most {MOST_EXAMPLES}; use fewer "
                "nodes or a smaller batch"
            )
        try:
            plan = self._plan(machine)
            check_form(question.model, plan)
            plan, idle = leave_idle(question.model, plan, batch)
            check_batch(question.model, plan, batch)
            return plan, idle, compile_all(question.model, plan, batch, self.options)
        except UserError as error:
            raise UserError(f"nodes {nodes}: {error}") from None

    def _plan(self, machine: Machine) -> Plan:
        ranks, model = len(machine.devices), self.question.model
        asked = replace(self.question.asked, shares="equal", grid="")
        plan = load_plan(asked, model, ranks)
        if grid := self.question.asked.grid:  # of the ranks of each stage
            asked = replace(asked, grid=closed(grid, ranks // plan.depth))
            plan = load_plan(asked, model, ranks)
        if self.question.shares == "equal":
            return plan
        convolves = any(layer.convolves for _, layer in model.layers)
        rates = machine.rates.convolution if convolves else machine.rates.linear
        if self.question.shares == "speed":
            rates = self._power(machine)
        # a coordinate of the last axis is as fast as the slowest rank that has it
        slowest = rates.reshape(-1, plan.grid[-1]).min(axis=0)
        return load_plan(asked, model, ranks, (slowest / slowest.sum()).tolist())

    @cached_property
    def _one(self) -> GlobalProgram:
        """Return the program of one rank that does all the work of `Question.batch` examples."""
        plan = replace(preset("data", self.question.model, (1,)), sync="allreduce")
        return compile_all(self.question.model, plan, self.question.batch, self.options)[0]

    def _alone(self, machine: Machine) -> dict[str, Times]:
        """Return the seconds of each rank, (ranks,), for every layer if it did all the work."""
        *took, update = durations(self._one, machine.rates, self.itemsize)
        found: dict[str, Times] = {"update": update}
        for op, seconds in zip(self._one.ops, took, strict=True):
            name, _ = label(op)
            found[name] = found.get(name, np.zeros(1)) + seconds
        return {name: times + np.zeros(len(machine.devices)) for name, times in found.items()}

    def _power(self, machine: Machine) -> Times:
        return np.asarray(1 / np.sum(list(self._alone(machine).values()), axis=0))

    def _short(
        self, nodes: int, machine: Machine, plan: Plan, programs: Sequence[GlobalProgram]
    ) -> dict[str, tuple[float, float]]:
        """Return the bytes that a node needs and has, for classes whose nodes have too little.

        Of nodes with equal memory the fastest is looked at, which has the largest share.
        """
        classes = self.cluster.nodes(nodes)
        if not any(node.memory for node in classes):
            return {}
        size = len(machine.devices) // plan.depth
        firsts: dict[tuple[float, int, int], int] = {}
        for rank in np.argsort(-machine.rates.convolution, kind="stable").tolist():
            node = classes[machine.hosts[rank]]
            firsts.setdefault((node.memory, node.ranks, rank // size), rank)
        found: dict[str, tuple[float, float]] = {}
        for rank in firsts.values():
            node = classes[machine.hosts[rank]]
            if not node.memory:
                continue
            needed = node.ranks * rank_bytes(programs[rank // size], rank % size, self.itemsize)
            if needed > max(node.memory, found.get(node.name, (0.0, 0.0))[0]):
                found[node.name] = needed, node.memory
        return found


def closed(grid: str, ranks: int) -> str:
    """Return a grid whose open length, as in "x4" or "2x", is what the number of ranks leaves.

    A length that is given is that of an axis with so many ranks, or with all of fewer.
    """
    outer, by, inner = grid.partition("x")
    if not by or (outer and inner):
        return grid
    given = min(int(outer or inner), ranks)
    if ranks % given:
        raise UserError(
            f"grid {grid}: {ranks} ranks cannot form rows of {given}; use another length"
        )
    return f"{ranks // given}x{given}" if inner else f"{given}x{ranks // given}"


def _slowest(found: Timeline) -> tuple[dict[str, Times], int]:
    """Return the seconds of every rank by category, and the rank that computes longest."""
    zeros = dict.fromkeys(("communication", "convolution", "other"), np.zeros(1))
    split = zeros | found.by_category()
    size = max(each.size for each in split.values())
    split = {name: np.broadcast_to(times, size) for name, times in split.items()}
    return split, int((split["convolution"] + split["other"]).argmax())
