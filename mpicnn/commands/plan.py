"""Print how plans divide a network, and what a step costs, before any rank computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpicnn import models
from mpicnn.comm.mesh import Mesh
from mpicnn.data.file import open_dataset
from mpicnn.devices.calibration import Calibration, digest
from mpicnn.devices.choice import choose_device
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError
from mpicnn.forecast.clusterfile import load_cluster
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.table import plan_table
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.environment import environment
from mpicnn.job.output import say
from mpicnn.run.planning import named_plan, speeds
from mpicnn.run.setup import read_settings
from mpicnn.search.report import certificate, ranking, why
from mpicnn.search.search import search, task_of
from mpicnn.settings.checks import bytes_of
from mpicnn.settings.command_settings import PlanSettings
from mpicnn.settings.plan_groups import AUTO

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.division.plan import Plan
    from mpicnn.models import Model


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Print the table of the plan that the settings describe, or of several. Collective."""
    settings = read_settings(comm, PlanSettings, argv)
    shape, classes = agree(comm, subject, settings)
    model = agree(comm, models.load, settings.model, shape, classes)
    model = agree(comm, models.freeze, model, settings.freeze)
    times: list[float] = []
    machine = None
    if settings.shares == "measured" or (searching(settings) and not settings.machine):
        measured = measure(comm, settings, model)
        machine, times = measured.machine(), measured.per_example
    elif settings.machine:
        machine = agree(comm, machine_of, settings, model, settings.ranks)
    from_root(comm, partial(show, settings, model, settings.ranks or comm.size, machine, times))


def searching(settings: PlanSettings) -> bool:
    """Say whether plans are looked for."""
    return settings.plan == AUTO or settings.compare


def measure(comm: MPI.Intracomm, settings: PlanSettings, model: Model) -> Calibration:
    """Return what the ranks that run can do. Collective.

    Raises UserError where they are not those to plan for.
    """
    if settings.ranks not in (0, comm.size):
        raise UserError(
            f"ranks {settings.ranks}: {comm.size} run; start as many as are to be measured, or "
            "give machine, the file of a cluster or of a calibration"
        )
    device = choose_device(comm, settings, settings.precision, environment())
    return speeds(Mesh(comm), device, model, settings, settings.batch, settings.precision)


def machine_of(settings: PlanSettings, model: Model, ranks: int) -> Machine:
    """Return the machine of a cluster's file, or of a calibration, with so many ranks.

    Where the settings say neither nodes nor ranks, it is all that is counted there.
    Raises UserError where there are not so many, and where a calibration is of another network.
    """
    path = settings.machine
    if path.endswith(".toml"):
        cluster = load_cluster(path)
        nodes = settings.nodes or (cluster.sized(ranks) if ranks else cluster.counted)
        if not nodes:
            raise UserError(f"cluster {path}: its nodes are not counted; give nodes or ranks")
        machine = cluster.machine(nodes)
    else:
        machine = _calibrated(path, settings, model)
    if ranks not in (0, len(machine.devices)):
        raise UserError(
            f"ranks {ranks}: {path} has {len(machine.devices)} ranks there; leave ranks out"
        )
    return machine


def _calibrated(path: str, settings: PlanSettings, model: Model) -> Machine:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise UserError(f"machine {path}: cannot be read: {reason}") from None
    found = Calibration.from_json(text, path)
    shape, precision = tuple(model.input_shape), settings.precision
    now = replace(
        found.conditions, model=model.name, network=digest(model), input_shape=shape,
        precision=precision,
    )  # fmt: skip
    if told := found.conditions.difference(now):
        raise UserError(
            f"machine {path}: {told}; measure this network, or give the file of a cluster"
        )
    return found.machine()


def show(
    settings: PlanSettings,
    model: Model,
    ranks: int,
    machine: Machine | None,
    times: Sequence[float],
) -> str:
    """Print what is asked for: plans in a ranking, and one in full."""
    plan: Plan | None = None
    if machine:
        ranks = len(machine.devices)
    if machine and searching(settings):
        limit = np.full(ranks, bytes_of(settings.memory)) if settings.memory else None
        task = task_of(model, settings, settings.batch, settings.precision, machine, limit)
        found = search(task, settings.search_time)
        told = certificate(found)
        if settings.compare:
            lines = [*ranking(found, task), "", why(found)]
            say(None, "\n".join([*lines, f"{told[0].upper()}{told[1:]}."]), fd=1)
        if settings.plan != AUTO:
            return ""
        plan = found.best.plan
    if plan is None:
        plan = named_plan(model, settings, ranks, times)
        check_batch(model, plan, settings.batch)
    table = plan_table(model, plan, settings.batch, settings.precision, machine)
    say(None, table, fd=1)
    return ""


def subject(settings: PlanSettings) -> tuple[tuple[int, ...], int]:
    """Return the image shape and the number of classes to plan for.

    Raises UserError where the data set that says so cannot be read.
    """
    if settings.input and settings.classes:
        return tuple(int(n) for n in settings.input.split("x")), settings.classes
    with open_dataset(settings.data) as data:
        given = tuple(int(n) for n in settings.input.split("x")) if settings.input else data.shape
        return given, settings.classes or len(data.classes)
