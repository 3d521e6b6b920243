"""Predict a step of a run from dry steps on its own ranks and from its own links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpicnn.comm.dry import DryMesh
from mpicnn.devices.links import measure_links
from mpicnn.devices.ranks import gather_ranks
from mpicnn.division.compile import compile_all
from mpicnn.forecast.machine import Device, Machine
from mpicnn.forecast.timeline import Timeline, timeline
from mpicnn.step.dry import dry_step
from mpicnn.step.interpreter import Batch, Tools
from mpicnn.step.timing import CATEGORIES, StepTimer

if TYPE_CHECKING:
    from mpicnn.division.program import GlobalProgram
    from mpicnn.run.distributed import DistributedModel
    from mpicnn.step.optimiser import Optimiser

WARM, TIMED = 1, 3
"""Steps before times are taken, and those that are timed."""


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
    hosts = _numbers([rank.host for rank in gather_ranks(mesh, distributed.device)])
    inside, between = measure_links(mesh, hosts)
    machine = Machine((Device(inf, inf),) * mesh.world.size, tuple(hosts), inside, between)
    expected = timeline(programs, machine, distributed.dtype.itemsize, measured)
    return Prediction(expected, float(mesh.collect(np.array([spread])).max()))


def _dry_steps(
    distributed: DistributedModel, optimiser: Optimiser, batch: int
) -> NDArray[np.float64]:
    """Return the seconds of every operation in some dry steps of this rank: (steps, ops + 1)."""
    ops, program = distributed.ops, distributed.program(batch)
    mesh = DryMesh(distributed.mesh)
    tools = Tools(
        mesh, ops, StepTimer(ops.Timer(), marked=False), distributed.seed, distributed.loss
    )
    rng = np.random.default_rng(0)
    shape = (program.positions.size, *distributed.model.input_shape)
    x = ops.upload(rng.standard_normal(shape).astype(distributed.dtype))
    labels = rng.integers(0, distributed.model.shapes[-1][0], batch)
    apart = replace(optimiser, state=distributed.initial())
    distributed.mesh.collect(np.zeros(1))  # ranks of a host share its memory: all at once
    found = [
        dry_step(tools, program, apart, Batch(x, labels, min(step, apart.steps - 1), train=True))
        for step in range(WARM + TIMED)
    ]
    return np.array(found[WARM:])


def _by_stage(
    table: NDArray[np.float64], programs: Sequence[GlobalProgram]
) -> list[list[NDArray[np.float64]]]:
    """Return every rank's times, (ranks, operations), as each stage's operations have them."""
    stages = table.reshape(len(programs), *programs[0].grid, -1)
    return [
        [stage[..., at] for at in range(len(program.ops) + 1)]
        for stage, program in zip(stages, programs, strict=True)
    ]


def _numbers(names: Sequence[str]) -> list[int]:
    """Return which of the different names, in order, each one is."""
    order = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]
