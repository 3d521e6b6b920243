"""What bench/schemes.py compares: plans on all ranks of a job, and DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from mpi4py import MPI
from task import Ours, Task
from turns import rest
from usage import Peak, network_bytes

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import ProgressMode
from mpicnn.division.plan import SCHEMES, Plan
from mpicnn.division.presets import preset
from mpicnn.division.propagation import check_batch
from mpicnn.job.agreement import agree
from mpicnn.models import Model
from mpicnn.ops.interface import Backend

TOLERANCE = 1e-4  # between the losses of both sides, absolute or relative


@dataclass
class Entry:
    """What is known of one side.

    `noted` has this rank's seconds in communication of every step since the last turn began,
    `exposed` those of the turns that ended.
    """

    plan: str
    progress: str
    step: Callable[[], float]
    noted: list[float] = field(default_factory=list)
    exposed: list[list[float]] = field(default_factory=list)
    sent_mb: float = float("nan")
    wire_mb: float = float("nan")
    peak_mb: float = float("nan")
    arrays_mb: float = float("nan")

    @property
    def name(self) -> str:
        """Return what the side is called."""
        return f"{self.plan} {self.progress}".strip()

    def begin(self) -> None:
        """Begin a turn."""
        self.noted.clear()

    def end(self) -> None:
        """End a turn."""
        self.exposed.append(self.noted.copy())


def plan_of(text: str, model: Model, ranks: int) -> Plan:
    """Return the plan that `text` names: a preset, then a scheme, then "sharded" (owt-c-sharded).

    Raises UserError for an unknown one.
    """
    name = text.removesuffix("-sharded")
    sync = "allreduce" if name == text else "sharded"
    scheme = next((s for s in SCHEMES if name.endswith(f"-{s}")), "a")
    return preset(name.removesuffix(f"-{scheme}"), model, (ranks,), scheme=scheme, sync=sync)


def divided(comm: MPI.Intracomm, backend: Backend, task: Task, text: str) -> Ours:
    """Return the task divided over all ranks by the plan that `text` names. Collective."""
    plan = agree(comm, plan_of, text, task.model, comm.size)
    agree(comm, check_batch, task.model, plan, len(task.labels))
    return Ours(Mesh(comm), backend, task, plan)


def entries_of(
    comm: MPI.Intracomm, backend: Backend, task: Task, text: str, ways: Iterable[ProgressMode]
) -> list[Entry]:
    """Return one entry for each way of progress in which the plan is run. Collective."""
    peak = Peak()
    ours = divided(comm, backend, task, text)
    peak.forget()  # drawing the first weights takes more than they do
    mesh, executor = ours.distributed.mesh, ours.distributed.executor

    def run(progress: ProgressMode, noted: list[float]) -> float:
        mesh.engine.progress = progress
        loss = ours.step()
        noted.append(executor.timer.by_category["communication"])
        return loss

    found = []
    for progress in ways:
        noted: list[float] = []
        entry = Entry(text, progress, partial(run, progress, noted), noted)
        try_out(mesh, entry, peak)
        found.append(entry)
    peak.close()
    return found


def try_out(mesh: Mesh, entry: Entry, peak: Peak) -> None:
    """Note what a side sends in a step, and the most memory that it needs for some. Collective."""
    entry.step()
    rest(mesh)
    before, counted = network_bytes(), mesh.sent
    entry.step()
    rest(mesh)
    entry.wire_mb, entry.sent_mb = (network_bytes() - before) / 1e6, (mesh.sent - counted) / 1e6
    entry.peak_mb, entry.arrays_mb = peak.mb, peak.arrays_mb


def peers_of(
    mesh: Mesh, task: Task, losses: Sequence[float], variants: Iterable[str]
) -> list[Entry]:
    """Return PyTorch's sides, ready to run. Collective.

    `losses` are mpicnn's before each of the first steps, without dropout. Raises RuntimeError
    where PyTorch's are others, so that nothing is timed that is not the same.
    """
    from ddp import Distributed

    found = []
    for variant in variants:
        peak = Peak()
        peer = Distributed(mesh, variant, task)
        peer.dropout(False)
        theirs = [float(mesh.collect(np.array(peer.step())).mean()) for _ in losses]
        if not np.allclose(theirs, losses, rtol=TOLERANCE, atol=TOLERANCE):
            raise RuntimeError(f"{task.model.name}, DDP {variant}: losses {theirs} not {losses}")
        peer.dropout(True)
        entry = Entry(f"DDP {variant}", "", peer.step)
        try_out(mesh, entry, peak)
        entry.sent_mb = entry.arrays_mb = float("nan")  # neither is seen from here
        peak.close()
        found.append(entry)
    return found
