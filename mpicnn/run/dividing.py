"""Divide the network of a run over its ranks: devices, the plan, and the checks that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpicnn.data.file import Dataset
from mpicnn.devices.choice import choose_device
from mpicnn.division.plan import Plan
from mpicnn.errors import UserError
from mpicnn.job.activity import Activity
from mpicnn.job.agreement import agree
from mpicnn.job.environment import environment
from mpicnn.models import Model
from mpicnn.run.distributed import DistributedModel
from mpicnn.run.planning import make_plan
from mpicnn.run.setup import progress_of, training_loss
from mpicnn.settings.definitions import Settings
from mpicnn.step.state import kept_by
from mpicnn.text import counted

if TYPE_CHECKING:
    from mpi4py import MPI


def open_distributed(
    comm: MPI.Intracomm, settings: Settings, data: Dataset, model: Model, activity: Activity
) -> DistributedModel:
    """Divide the network over the ranks as the settings say; `activity` follows it. Collective."""
    loss = agree(comm, training_loss, settings, data)
    batch = min(settings.batch, len(data.split("train")))
    activity.begin("devices and plan", waits=True)
    device = choose_device(comm, settings, settings.precision, environment())
    planned = make_plan(comm, device, model, settings, batch, settings.precision)
    progress = agree(comm, progress_of, comm, settings.progress_thread)

    def divide(plan: Plan) -> DistributedModel:
        return DistributedModel(
            comm, device, model, plan, settings.precision, settings.seed,
            bucket=int(settings.bucket_mb * 1e6), progress=progress, activity=activity,
            by_round=settings.fc_update == "round", kept=kept_by(settings.optimiser, settings.ema),
            loss=loss, why=planned.told,
        )  # fmt: skip

    if len(planned.plans) == 1:
        distributed = divide(planned.plans[0])
    else:
        distributed = fastest(list(map(divide, planned.plans)), batch)
    if settings.fc_update == "round":
        agree(comm, check_rounds, distributed, batch)
    distributed.verify({batch, len(data.split("train")) % batch or batch})
    return distributed


def fastest(tried: list[DistributedModel], batch: int) -> DistributedModel:
    """Return the one of several divisions whose steps are the shortest. Collective."""
    from mpicnn.run.prediction import step_seconds  # most runs do without it, and start sooner

    took = [step_seconds(each, batch) for each in tried]
    best = min(range(len(took)), key=took.__getitem__)
    found = tried[best]
    found.why += (
        f"; {counted(len(took), 'plan')} tried: {1e3 * took[best]:.4g} ms, number {best + 1} of "
        "the forecast"
    )
    return found


def check_rounds(distributed: DistributedModel, batch: int) -> None:
    """Raise UserError unless a full batch is divided into the rounds that FC weights change in.

    A rank without work has no round under scheme (b). Elsewhere a missing round is a mistake: the
    rate was chosen for a K-th of the batch. Only the last pipeline stage has rounds and can tell.
    """
    plan, ranks = distributed.plan, distributed.plan.grid[-1]
    if plan.micro_batches > 1:
        raise UserError(
            "fc-update round: FC weights change after every round of a whole batch; use "
            "micro-batches 1"
        )
    if plan.scheme == "a":
        raise UserError(
            "fc-update round: scheme (a) has one round a step; use scheme b or c, or fc-update step"
        )
    rounds = len(list(distributed.program(batch).losses))
    if plan.scheme == "c" and 0 < rounds < ranks:
        raise UserError(
            f"fc-update round: batch {batch} leaves {ranks - rounds} of the {ranks} rounds of "
            "scheme (c) without examples; use a larger batch, fewer ranks or scheme b"
        )
