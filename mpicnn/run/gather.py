"""Gather what ranks know of a run, for its first and last lines."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn import __version__
from mpicnn.devices.ranks import gather_ranks
from mpicnn.errors import printable
from mpicnn.job.environment import environment
from mpicnn.job.launcher import command
from mpicnn.models.freezing import frozen_text
from mpicnn.run.summary import Forecast, Memory, Opening, RunSummary, TimeSplit, startup
from mpicnn.settings.plan_groups import AUTO
from mpicnn.step.timing import CATEGORIES
from mpicnn.text import counted, spans

if TYPE_CHECKING:
    from mpicnn.run.starting import Start
    from mpicnn.run.trainer import Trainer
    from mpicnn.settings.definitions import Settings


UNFORESEEN = ("data", "norms", "progress")
"""What takes time in steps and in no forecast: waiting for images, norms, and MPI's progress."""

BIASED = (
    "the data have no images for validation, so the best checkpoint is chosen by the test images: "
    "its test score is too good; 'python -m mpicnn.data prepare --validation' makes some"
)


def first_lines(trainer: Trainer, directory: Path, start: Start | None = None) -> str:
    """Return the lines that open a run: who computes what with what. Collective.

    `start` says with which weights, None: with fresh ones, or as the run goes on.
    """
    distributed, data = trainer.distributed, trainer.data
    mesh, model = distributed.mesh, distributed.model
    device = distributed.device
    library = mesh.library if device.way == "MPI" else f"{mesh.library}, GPU arrays: {device.way}"
    counts = " + ".join(str(len(split)) for split in data.splits.values())
    shape = " x ".join(map(str, data.shape))
    went_on = f", from step {trainer.step}" if trainer.step else ""
    notes = {note for text in mesh.texts("\n".join(device.notes)) for note in text.splitlines()}
    if trainer.step >= trainer.steps:
        done = counted(trainer.step, "step")
        notes.add(f"the run has ended already, after {done}; give it more --epochs to go on")
    if trainer.choice.by and trainer.split == "test":
        notes.add(BIASED)
    if ema := trainer.settings.ema:
        span = round(1 / (1 - ema))
        if span > trainer.steps:
            notes.add(
                f"ema {ema:g} is a mean over some {span} steps, but the run has {trainer.steps}: "
                "tests see much of the initial weights; a lower one forgets them sooner"
            )
    more = list(start.rows.items()) if start else []
    if model.frozen:
        more.append(("frozen", f"{frozen_text(model)}: {spans(model.frozen, model.weighted)}"))
    if start:
        notes.update(map(printable, start.notes))
    if distributed.why:
        more.append((AUTO, distributed.why))
    if trainer.expected:
        more.append(("step", trainer.expected.text()))
    opening = Opening(
        __version__,
        gather_ranks(mesh, device),
        library,
        model.name,
        sum(prod(spec.shape) for spec in model.param_specs().values()),
        f"{data.path}: {counts} images of {shape} in {len(data.classes)} classes",
        f"{distributed.plan.text()}, {trainer.steps} steps of batch {trainer.settings.batch}",
        f"{directory}{went_on}",
        sorted(notes),
        more,
    )
    return startup(opening)


def gather_summary(trainer: Trainer, directory: Path, begun: int, seconds: float) -> RunSummary:
    """Return how a run went that began at step `begun` and took `seconds`. Collective."""
    distributed = trainer.distributed
    steps = trainer.step - begun
    kinds = [trainer.spent[kind] / max(1, trainer.timed) for kind in CATEGORIES]
    held = [
        float(sum(a.nbytes for kind in kinds for a in vars(trainer.state)[kind].values()))
        for kinds in (("params",), distributed.kept)
    ]
    mine = [*kinds, *held, distributed.ops.peak_bytes(), trainer.timed]
    table = distributed.mesh.collect(np.array(mine))
    timed = table[:, -1].all()
    ranks = distributed.mesh.world.size
    test, choice = trainer.tested, trainer.choice
    of = f" (of step {test.step})" if test and test.step != trainer.step else ""
    best = trainer.checkpoints.best.relative_to(directory)
    early = choice.ended(trainer.settings.patience) if trainer.step < trainer.steps else ""
    notes = [note for note in (choice.told(trainer.split, str(best)), early) if note]
    return RunSummary(
        str(directory),
        steps,
        trainer.images,
        seconds,
        test.score if test else None,
        [TimeSplit(*row[:3]) for row in table.tolist()] if timed else [],
        [Memory(*(int(n) for n in row[3:-1])) for row in table.tolist()],
        launcher=command(environment(), distributed.mesh.library, ranks),
        tested=(test.split if test else "", of),
        notes=notes,
        more="--patience MORE" if early else RunSummary.more,
        forecast=_forecast(trainer) if timed else None,
        remedies=remedies(trainer.settings),
    )


def remedies(settings: Settings) -> list[str]:
    """Return the options that divide the work by what ranks can do, and that a run has not."""
    if settings.plan == AUTO:
        return []
    measured = ["--shares measured"] if settings.shares == "equal" else []
    return measured if settings.fc_update == "round" else [*measured, "--plan auto"]


def _forecast(trainer: Trainer) -> Forecast | None:
    """Return what a step was expected to take, and how long its layers took. Collective."""
    expected = trainer.expected
    if expected is None:
        return None
    names, seconds = expected.layers()
    names, seconds = [*names, *UNFORESEEN], [[*row, *(0.0 for _ in UNFORESEEN)] for row in seconds]
    mine = np.array([trainer.spent_by_name.get(name, 0.0) / trainer.timed for name in names])
    measured = trainer.distributed.mesh.collect(mine).tolist()
    return Forecast([TimeSplit(*row) for row in expected.splits()], names, seconds, measured)
