"""Predict a step of a run from dry steps on its own ranks and from its own links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpicnn.comm.dry import DryMesh
from mpicnn.devices.links import measure_links
from mpicnn.devices.ranks import gather_ranks, numbers
from mpicnn.division.compile import compile_all
from mpicnn.forecast.machine import Device, Machine
from mpicnn.forecast.timeline import Timeline, timeline
from mpicnn.step.dry import WARM, dry_steps
from mpicnn.step.interpreter import Tools
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.timing import CATEGORIES, StepTimer

if TYPE_CHECKING:
    from mpicnn.division.program import GlobalProgram
    from mpicnn.run.distributed import DistributedModel


TRIED = 5
"""Steps that are timed of a plan that is tried."""


@dataclass(frozen=True)
class Prediction:
    """Hold the timeline that is expected of a step, and how unlike the dry steps were.

    `spread` is the largest difference of a rank's dry step from its mean, as a part of it.
    """

    timeline: Timeline
    spread: float

    def splits(self) -> list[list[float]]:
        """Return the seconds of each of `step.timing.CATEGORIES`, a row per rank."""
        found = self.timeline.by_category()
        return np.stack([found[kind] for kind in CATEGORIES], axis=1).tolist()

    def layers(self) -> tuple[list[str], list[list[float]]]:
        """Return what a step goes through by name, and the seconds of each, a row per rank."""
        found = self.timeline.by_layer()
        return list(found), np.stack(list(found.values()), axis=1).tolist()

    def text(self) -> str:
        """Return in words what a step will take, on average over the ranks."""
        means = np.mean(self.splits(), axis=0)
        parts = (f"{kind} {1e3 * s:.2f}" for kind, s in zip(CATEGORIES, means, strict=True))
        return (
            f"{1e3 * self.timeline.seconds:.2f} ms expected: {', '.join(parts)}"
            f" (dry steps up to {100 * self.spread:.0f} % apart)"
        )


def predict(distributed: DistributedModel, optimiser: Optimiser, batch: int) -> Prediction:
    """Predict a training step of `batch` examples. Collective.

    All ranks do a few dry steps at the same time, with random images, weights of their own and the
    optimiser's settings; nothing of the run changes.
    """
    mesh = distributed.mesh
    programs = compile_all(distributed.model, distributed.plan, batch, distributed.options)
    took = _dry_steps(distributed, optimiser, batch)
    longest = max(len(program.ops) for program in programs) + 1
    means = np.pad(took.mean(axis=0), (0, longest - took.shape[1]))
    totals = took.sum(axis=1)
    spread = float(np.abs(totals / totals.mean() - 1).max())
    measured = _by_stage(mesh.collect(means), programs)
    hosts = numbers([rank.host for rank in gather_ranks(mesh, distributed.device)])
    inside, between = measure_links(mesh, hosts)
    machine = Machine((Device(inf, inf),) * mesh.world.size, tuple(hosts), inside, between)
    expected = timeline(programs, machine, distributed.dtype.itemsize, measured)
    return Prediction(expected, float(mesh.collect(np.array([spread])).max()))


def step_seconds(distributed: DistributedModel, batch: int) -> float:
    """Return what a step really takes the slowest rank: a median of some, with random images, s.

    Collective.
    """
    ops, model, program = distributed.ops, distributed.model, distributed.program(batch)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((program.positions.size, *model.input_shape))
    x, labels = ops.upload(images.astype(distributed.dtype)), rng.integers(0, model.classes, batch)
    optimiser = Optimiser(
        ops, distributed.initial(), model.param_specs(), Hyper(1e-3), WARM + TRIED
    )
    took = []
    for step in range(WARM + TRIED):
        since = perf_counter()
        distributed.executor.step(program, optimiser, x, labels, step)
        took.append(perf_counter() - since)
    slowest = distributed.mesh.collect(np.array(took[WARM:])).max(axis=0)
    return float(np.median(slowest))


def _dry_steps(
    distributed: DistributedModel, optimiser: Optimiser, batch: int
) -> NDArray[np.float64]:
    """Return the seconds of every operation in some dry steps of this rank: (steps, ops + 1)."""
    ops, program, model = distributed.ops, distributed.program(batch), distributed.model
    mesh = DryMesh(distributed.mesh)
    timer = StepTimer(ops.Timer(), marked=False)
    tools = Tools(mesh, ops, timer, distributed.seed, distributed.loss)
    apart = replace(optimiser, state=distributed.initial())
    distributed.mesh.collect(np.zeros(1))  # ranks of a host share its memory: all at once
    return dry_steps(tools, program, apart, model.input_shape, model.classes, batch)


def _by_stage(
    table: NDArray[np.float64], programs: Sequence[GlobalProgram]
) -> list[list[NDArray[np.float64]]]:
    """Return every rank's times, (ranks, operations), as each stage's operations have them."""
    stages = table.reshape(len(programs), *programs[0].grid, -1)
    return [
        [stage[..., at] for at in range(len(program.ops) + 1)]
        for stage, program in zip(stages, programs, strict=True)
    ]
