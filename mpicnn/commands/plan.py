"""Print how a plan divides a network, before any rank computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpicnn import models
from mpicnn.data.file import open_dataset
from mpicnn.devices.choice import choose_device
from mpicnn.division.planfile import load_plan
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError
from mpicnn.forecast.table import plan_table
from mpicnn.job.agreement import agree
from mpicnn.job.environment import environment
from mpicnn.job.output import say
from mpicnn.run.setup import make_plan, read_settings
from mpicnn.settings.command_settings import PlanSettings

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Print the table of the plan that the settings describe. Collective."""
    settings = read_settings(comm, PlanSettings, argv)
    shape, classes = agree(comm, subject, settings)
    model = agree(comm, models.load, settings.model, shape, classes)
    model = agree(comm, models.freeze, model, settings.freeze)
    ranks = settings.ranks or comm.size
    if settings.shares == "measured":
        if ranks != comm.size:
            raise UserError(f"shares measured: start the {ranks} ranks that are to be measured")
        device = choose_device(comm, settings, settings.precision, environment())
        plan = make_plan(comm, device, model, settings, settings.batch, settings.precision)
    else:
        plan = agree(comm, load_plan, settings, model, ranks)
        agree(comm, check_batch, model, plan, settings.batch)
    table = agree(comm, plan_table, model, plan, settings.batch, settings.precision)
    if comm.rank == 0:
        say(None, table, fd=1)


def subject(settings: PlanSettings) -> tuple[tuple[int, ...], int]:
    """Return the image shape and the number of classes to plan for.

    Raises UserError where the data set that says so cannot be read.
    """
    if settings.input and settings.classes:
        return tuple(int(n) for n in settings.input.split("x")), settings.classes
    with open_dataset(settings.data) as data:
        given = tuple(int(n) for n in settings.input.split("x")) if settings.input else data.shape
        return given, settings.classes or len(data.classes)
