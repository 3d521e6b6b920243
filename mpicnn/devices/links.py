"""How fast messages travel between the ranks of a job, measured by its own all-reduces."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from time import perf_counter
from typing import cast

import numpy as np
from mpi4py import MPI

from mpicnn.comm.mesh import Group, Mesh
from mpicnn.division.move import sum_sent
from mpicnn.forecast.machine import Link
from mpicnn.job.waiting import wait

LITTLE, MUCH = 8, 1 << 22
"""The bytes of the two sums that are timed."""
REPEATS = 9


def measure_links(mesh: Mesh, hosts: Sequence[int]) -> tuple[Link, Link]:
    """Return the links inside a host and between hosts, as sums over the ranks show them.

    `hosts` are the numbers of the ranks' hosts. Where one of the two kinds does not occur, it is
    taken to be like the other. Collective.
    """
    world = mesh.world
    if len(set(hosts)) == 1:
        inside = _timed(world, busy=1.0)
        return inside, inside
    between = _timed(world, busy=0.0)
    comm = cast(MPI.Intracomm, world.comm.Split(hosts[world.rank], world.rank))
    here = _timed(Group(comm, mesh.engine, mesh.wires), busy=1.0)
    comm.Free()
    table = mesh.collect(np.array([here.latency, here.bandwidth]))
    shared = [row for row, host in zip(table, hosts, strict=True) if hosts.count(host) > 1]
    if not shared:
        return between, between
    latency, bandwidth = np.max([row[0] for row in shared]), np.min([row[1] for row in shared])
    return Link(float(latency), float(bandwidth), 1.0), between


def _timed(group: Group, busy: float) -> Link:
    """Return a link on which sums would take as long as they do among the ranks of a group."""
    if group.size == 1:
        return Link(busy=busy)
    steps = 2 * ceil(log2(group.size))
    little, much = (_sum_seconds(group, size) for size in (LITTLE, MUCH))
    volume = sum_sent(MUCH - LITTLE, group.size)
    return Link(little / steps, volume / max(much - little, 1e-9), busy)


def _sum_seconds(group: Group, size: int) -> float:
    """Return the median over some repeats of the time that a sum takes the slowest rank, s."""
    x = group.xp.zeros(size // 4, np.float32)
    took = []
    for _ in range(REPEATS):
        wait(group.comm.Ibarrier())
        since = perf_counter()
        wait(group.wire.allreduce(x))
        took.append(perf_counter() - since)
    slowest = np.array(took)
    wait(group.comm.Iallreduce(MPI.IN_PLACE, slowest, op=MPI.MAX))
    return float(np.median(slowest))
