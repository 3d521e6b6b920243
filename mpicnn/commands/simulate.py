"""Forecast a training step on more and more nodes of a cluster that need not be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn import models
from mpicnn.data.file import EMBEDDED, open_dataset
from mpicnn.data.write import check_target
from mpicnn.errors import UserError
from mpicnn.forecast.clusterfile import load_cluster
from mpicnn.forecast.scaling import Point, Question, Simulation
from mpicnn.forecast.scaling_text import (
    as_csv,
    as_table,
    notes,
    read_measured,
    reason,
    rows_of,
    stop,
)
from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.models.zoo import ZOO, made_for
from mpicnn.run.directory import write_text
from mpicnn.run.picture import figure
from mpicnn.run.scaling_picture import draw_scaling
from mpicnn.run.setup import read_settings
from mpicnn.settings.checks import node_counts
from mpicnn.settings.command_groups import SimulatedPlan
from mpicnn.settings.command_settings import SimulateSettings
from mpicnn.settings.plan_groups import PlanChoice

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_BY_DEFAULT = 64


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Print a row for each number of nodes, and what holds the speed-up up. Collective.

    One rank does all of it.
    """
    settings = read_settings(comm, SimulateSettings, argv)
    from_root(comm, simulate, settings)


def simulate(settings: SimulateSettings) -> str:
    """Forecast, write and print what the settings ask for.

    Raises UserError for a wrong file, for what cannot run, and where a file cannot be written.
    """
    check_files(settings)
    cluster = load_cluster(settings.cluster)
    measured = read_measured(settings.measured) if settings.measured else {}
    simulation = Simulation(question(settings), cluster)
    counts = node_counts(settings.nodes or f"1..{cluster.counted or MOST_BY_DEFAULT}")
    points = [simulation.point(nodes) for nodes in counts]
    reference = first(simulation, points)
    rows = rows_of(points, reference, measured)
    say(None, "\n".join([*title(simulation, reference), "", *as_table(rows)]), fd=1)
    at = stop(rows)
    where = rows[min(at + 1, len(rows) - 1)]
    told = reason(rows, at, where, simulation.loss(where.point.nodes))
    say(None, "\n".join(["", told, *notes(points)]), fd=1)
    if settings.out:
        write_text(Path(settings.out), as_csv(rows))
    if settings.plot:
        draw_scaling(rows, title(simulation, reference)[0], Path(settings.plot))
    return ""


def check_files(settings: SimulateSettings) -> None:
    """Raise UserError where a file could not be written: before the work is done."""
    for path in filter(None, (settings.out, settings.plot)):
        check_target(Path(path), settings.overwrite)
    if settings.plot:
        figure("pictures", 1, 1)


def question(settings: SimulateSettings) -> Question:
    """Return what is to be forecast. Raises UserError where network or data cannot be read."""
    shape, classes = subject(settings)
    model = models.freeze(models.load(settings.model, shape, classes), settings.freeze)
    own = {each.name for each in fields(SimulatedPlan)} - {"shares"}
    asked = PlanChoice(**{name: getattr(settings, name) for name in own})
    return Question(
        model, asked, settings.batch, settings.precision, settings.scaling == "weak",
        settings.shares, settings.seed,
    )  # fmt: skip


def subject(settings: SimulateSettings) -> tuple[tuple[int, ...], int]:
    """Return the image shape and the number of classes to forecast for.

    Raises UserError where the data set that says so cannot be read.
    """
    shape: tuple[int, ...] = tuple(int(n) for n in settings.input.split("x") if n)
    classes = settings.classes
    if settings.model in ZOO and not settings.data:
        made_shape, made_classes = made_for(settings.model)
        return shape or made_shape, classes or made_classes
    if shape and classes:
        return shape, classes
    with open_dataset(settings.data or EMBEDDED) as data:
        return shape or tuple(data.shape), classes or len(data.classes)


def first(simulation: Simulation, points: Sequence[Point]) -> Point:
    """Return the point that others are compared with: one node, or the fewest on which the plan
    can run."""
    if points[0].nodes == 1:
        return points[0]
    try:
        return simulation.point(1)
    except UserError:  # as for a pipeline, which has a rank for each stage at least
        return points[0]


def title(simulation: Simulation, reference: Point) -> list[str]:
    """Return what is forecast, on what, and with what it is compared."""
    asked, cluster = simulation.question, simulation.cluster
    shape = "x".join(map(str, asked.model.input_shape))
    batch = f"batch {asked.batch}{' per node' if asked.weak else ''}"
    lines = [
        f"{asked.model.name} ({shape}, {asked.model.classes} classes) under plan "
        f"{Path(asked.asked.plan).stem}, {batch}, {asked.precision}, shares {asked.shares}",
        f"cluster {cluster.name}: {cluster.text()}",
    ]
    if reference.nodes != 1:
        lines.append(f"speed-up and efficiency beside {reference.nodes} nodes")
    return lines
