"""Print how a plan divides a network, before any rank computes."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from mpicnn import models
from mpicnn.config import PlanSettings
from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError
from mpicnn.launch import agree, say
from mpicnn.plan import Plan, check_batch
from mpicnn.planfile import load_plan
from mpicnn.session import (
    given_shares,
    load_backend,
    make_plan,
    open_grid,
    parse_grid,
    read_settings,
)
from mpicnn.show import plan_table

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.models import Model


def main(comm: MPI.Intracomm) -> None:
    """Print the table of the plan that the settings describe. Collective."""
    settings = read_settings(comm, "plan", PlanSettings)
    shape, classes = agree(comm, subject, settings)
    model = agree(comm, models.load, settings.model, shape, classes)
    ranks = settings.ranks or comm.size
    if settings.shares == "measured":
        if ranks != comm.size:
            raise UserError(f"shares measured: start the {ranks} ranks that are to be measured")
        mesh = open_grid(comm, settings.grid)
        backend, _ = load_backend(comm, settings)
        plan = make_plan(mesh, backend, model, settings, settings.batch, settings.precision)
    else:
        plan = agree(comm, imagined, settings, model, ranks)
    table = agree(comm, plan_table, model, plan, settings.batch, settings.precision)
    if comm.rank == 0:
        say(None, table, fd=1)


def imagined(settings: PlanSettings, model: Model, ranks: int) -> Plan:
    """Return a plan for any number of ranks, whether they run or not."""
    grid = parse_grid(settings.grid) or (ranks,)
    if prod(grid) != ranks:
        raise UserError(
            f"grid {settings.grid} has {prod(grid)} places, but there are {ranks} ranks"
        )
    shares = given_shares(settings.shares, grid)
    plan = load_plan(settings.plan, model, grid, shares, settings.scheme, settings.sync)
    check_batch(model, plan, settings.batch)
    return plan


def subject(settings: PlanSettings) -> tuple[tuple[int, ...], int]:
    """Return the image shape and the number of classes to plan for."""
    if settings.input and settings.classes:
        return tuple(int(n) for n in settings.input.split("x")), settings.classes
    with open_dataset(settings.data) as data:
        given = tuple(int(n) for n in settings.input.split("x")) if settings.input else data.shape
        return given, settings.classes or len(data.classes)
