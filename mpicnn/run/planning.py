"""Decide who computes what: the plan of a run, and the measuring and searching that it needs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpicnn.comm.mesh import Mesh
from mpicnn.devices import calibration
from mpicnn.division.plan import Plan
from mpicnn.division.planfile import load_plan, parse_plan, plan_toml
from mpicnn.division.propagation import check_batch
from mpicnn.errors import UserError, printable
from mpicnn.job.agreement import agree, from_root
from mpicnn.run.directory import write_text
from mpicnn.run.load import warn
from mpicnn.settings.checks import bytes_of
from mpicnn.settings.plan_groups import AUTO, PlanChoice, Planning

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.devices.choice import Device
    from mpicnn.devices.ranks import Rank
    from mpicnn.forecast.durations import Times
    from mpicnn.forecast.machine import Machine
    from mpicnn.models import Model


class Planned(NamedTuple):
    """Hold the plans that a run may take, the first as it is forecast to be fastest, and what was
    found out of it: "" where it was not looked for."""

    plans: tuple[Plan, ...]
    told: str = ""


def make_plan(
    comm: MPI.Intracomm,
    device: Device,
    model: Model,
    division: Planning,
    batch: int,
    precision: str,
) -> Planned:
    """Return the plan that the settings ask for, or those of several that are to be tried.

    Speeds are measured where that needs them. Collective. Raises UserError where the plan does not
    fit network, ranks or batch.
    """
    if division.plan != AUTO and division.shares != "measured":
        plan = agree(comm, named_plan, model, division, comm.size)
        agree(comm, check_batch, model, plan, batch)
        return Planned((plan,))
    mesh = Mesh(comm)
    found = speeds(mesh, device, model, division, batch, precision)
    if division.plan != AUTO:
        plan = agree(comm, named_plan, model, division, comm.size, found.per_example)
        agree(comm, check_batch, model, plan, batch)
        return Planned((plan,))
    limit = rank_memory(mesh, found.conditions.ranks, device, division.memory)
    look = partial(_look, model, division, batch, precision, found.machine(), limit)
    texts, told = json.loads(from_root(comm, look))
    asked = PlanChoice()
    return Planned(
        tuple(parse_plan(text, "found", asked, model, comm.size) for text in texts), told
    )


def named_plan(model: Model, division: PlanChoice, ranks: int, times: Sequence[float] = ()) -> Plan:
    """Return a plan that is not looked for. `times` are those of the ranks, for measured shares.

    Raises UserError where it does not fit network or ranks.
    """
    if division.shares != "measured":
        return load_plan(division, model, ranks)
    equal = replace(division, shares="equal")
    plan = load_plan(equal, model, ranks)
    # a coordinate of the last axis is as fast as the slowest rank that has it
    slowest = np.array(times).reshape(-1, plan.grid[-1]).max(axis=0)
    return load_plan(equal, model, ranks, calibration.shares_of(slowest.tolist()))


def _look(
    model: Model, division: Planning, batch: int, precision: str, machine: Machine, limit: Times
) -> str:
    """Return the plans that are found, each as TOML, and a line about the best, as JSON."""
    from mpicnn.search.report import summary, unlike  # most runs do without it, and start sooner
    from mpicnn.search.search import search, task_of

    found = search(task_of(model, division, batch, precision, machine, limit), division.search_time)
    best = list(unlike(found.candidates))[: max(1, division.verify)]
    return json.dumps([[plan_toml(each.plan) for each in best], summary(found)])


def rank_memory(mesh: Mesh, ranks: Sequence[Rank], device: Device, asked: str) -> Times:
    """Return the bytes that every rank may take: (ranks,). Collective.

    That is what is `asked` for, like "4GB"; else, of ranks that compute on cores, their part of
    their host's memory. Others have no limit here.
    """
    if asked:
        return np.full(len(ranks), bytes_of(asked))
    hosts = [rank.host for rank in ranks]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mine = whole / hosts.count(hosts[mesh.world.rank])
    return mesh.collect(np.array(mine if device.name == "cpu" else np.inf))


def speeds(
    mesh: Mesh, device: Device, model: Model, division: Planning, batch: int, precision: str
) -> calibration.Calibration:
    """Return the ranks' measured speeds: from their file where it holds, else measured and saved.

    Collective. Raises UserError where the file is of another network, other ranks or devices, and
    need not be measured anew.
    """
    comm, file = mesh.world.comm, division.calibration
    now = calibration.conditions(mesh, device, model, precision)
    if text := from_root(comm, calibration.kept, file):
        found = agree(comm, calibration.reuse, text, file, now)
        if isinstance(found, calibration.Calibration):
            return found
        if not division.recalibrate:
            raise UserError(
                f"calibration {file}: {found}; add --recalibrate to measure anew, or give another "
                "name"
            )
        from_root(comm, warn, printable(f"calibration {file}: {found}; measured anew"))
    from mpicnn.devices.measuring import measure  # most runs do without it, and start sooner

    measured = measure(mesh, device.ops, model, now, batch)
    if file:
        from_root(comm, write_text, Path(file), measured.to_json())
    return measured
