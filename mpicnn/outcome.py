"""What all ranks know of a run, brought together for its first and last lines."""

from __future__ import annotations

import socket
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.clock import KINDS
from mpicnn.options import version
from mpicnn.report import Memory, Outcome, Rank, TimeSplit, startup

if TYPE_CHECKING:
    from mpicnn.plan import Plan
    from mpicnn.training import Training


def first_lines(training: Training, directory: Path) -> str:
    """Return the lines that open a run: who computes what with what. Collective."""
    session, data = training.session, training.data
    mesh, model = session.mesh, session.model
    threads = mesh.collect(np.array(session.device.threads))
    device = session.device
    names = mesh.texts("\t".join((socket.gethostname(), device.name, session.ops.NAME)))
    ranks = [
        Rank(host, kind, backend, int(count))
        for (host, kind, backend), count in zip(
            (name.split("\t") for name in names), threads, strict=True
        )
    ]
    library = mesh.library if device.way == "MPI" else f"{mesh.library}, GPU arrays: {device.way}"
    splits = [len(data.split(name)) for name in ("train", "test")]
    shape = " x ".join(map(str, data.shape))
    went_on = f", from step {training.step}" if training.step else ""
    notes = {note for text in mesh.texts("\n".join(device.notes)) for note in text.splitlines()}
    return startup(
        version(),
        ranks,
        library,
        model.name,
        sum(prod(spec.shape) for spec in model.param_specs().values()),
        f"{data.path}: {splits[0]} + {splits[1]} images of {shape} in {len(data.classes)} classes",
        f"{describe(session.plan)}, {training.steps} steps of batch {training.settings.batch}",
        f"{directory}{went_on}",
        sorted(notes),
    )


def describe(plan: Plan) -> str:
    """Return a plan's name, what differs from its defaults, and its shares where unequal."""
    words = [plan.name]
    if plan.scheme != "a":
        words.append(f"scheme ({plan.scheme})")
    if plan.sync != "allreduce":
        words.append(f"{plan.sync} weights")
    if len(plan.grid) > 1:
        words.append(f"grid {'x'.join(map(str, plan.grid))}")
    if plan.stages:
        words.append(f"{plan.depth} stages from {', '.join(plan.stages)} ({plan.order})")
    if plan.micro_batches > 1:
        words.append(f"{plan.micro_batches} micro-batches")
    for weights in plan.shares:
        if len(set(weights)) > 1:
            parts = " + ".join(f"{100 * w / sum(weights):.1f}" for w in weights)
            words.append(f"shares {parts} %")
    return ", ".join(words)


def outcome(training: Training, directory: Path, begun: int, seconds: float) -> Outcome:
    """Return how a run went that began at step `begun` and took `seconds`. Collective."""
    session = training.session
    steps = training.step - begun
    kinds = [training.spent[kind] / max(1, steps) for kind in KINDS]
    state = training.state
    held = [
        float(sum(a.nbytes for a in arrays.values())) for arrays in (state.params, state.velocity)
    ]
    table = session.mesh.collect(np.array([*kinds, *held, session.ops.peak_bytes()]))
    ranks = session.mesh.world.size
    return Outcome(
        str(directory),
        steps,
        training.images,
        seconds,
        training.score,
        [TimeSplit(*row[:3]) for row in table.tolist()],
        [Memory(*(int(n) for n in row[3:])) for row in table.tolist()],
        launcher=f"mpirun -n {ranks}" if ranks > 1 else "",
    )
