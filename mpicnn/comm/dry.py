"""A mesh on which every message arrives at once: what is left of a step is a rank's own work."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from time import perf_counter
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from mpicnn.comm.mesh import Group, Link, Mesh
from mpicnn.comm.pending import Pending, ProgressEngine
from mpicnn.comm.wire import Wire
from mpicnn.job.waiting import Request
from mpicnn.ops.interface import Array


class DryMesh(Mesh):
    """Stand in for a mesh, at the place of this rank in it.

    What would arrive from others is made of what this rank would send them, so that numbers are of
    a usual size. `spent` are the seconds that this took, which are no part of a step; `like` is a
    wire of the mesh that this one stands in for.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.spent = 0.0
        self.like = mesh.world.wire
        self.engine = ProgressEngine()
        self.grid, self.stage, self.coords = mesh.grid, mesh.stage, mesh.coords
        self.world = self._stand_in(mesh.world)
        self.peers = self._stand_in(mesh.peers)
        self.axes = tuple(self._stand_in(group) for group in mesh.axes)
        if len(self.axes) == 1:
            self.axes = (self.peers,)
        wire, places = self.world.wire, prod(self.grid)
        self.before = mesh.before and Link(wire, self.world.rank - places, self.engine)
        self.behind = mesh.behind and Link(wire, self.world.rank + places, self.engine)

    def _stand_in(self, group: Group) -> Group:
        place = cast(MPI.Intracomm, _Place(group.size, group.rank))
        return Group(place, self.engine, lambda comm: _DryWire(comm, self))

    def fill(self, y: Array, x: Array | None) -> Request:
        """Fill the array that receives by repeating what is sent; with zeros if that is nothing.

        Returns a request that has ended.
        """
        since = perf_counter()
        if x is None or not x.size:
            y.fill(0)
        else:
            for at in range(0, y.size, x.size):
                part = y[at : at + x.size]
                part[:] = x[: part.size]
        self.spent += perf_counter() - since
        return _Ended()

    def sum(self, values: Array) -> Pending:
        """Return the values as they are."""
        return Pending.done(np.array(values))


class _Place:
    """Say how many ranks a group has, and which one this is."""

    def __init__(self, size: int, rank: int) -> None:
        self.size, self.rank = size, rank

    def Get_size(self) -> int:  # noqa: N802  (mpi4py's name)
        return self.size

    def Get_rank(self) -> int:  # noqa: N802
        return self.rank


class _Ended:
    def Test(self) -> bool:  # noqa: N802
        return True


class _DryWire(Wire):
    def __init__(self, comm: MPI.Intracomm, mesh: DryMesh) -> None:
        super().__init__(comm)
        self.mesh = mesh
        self.xp = mesh.like.xp
        self.flat: Any = mesh.like.flat

    def allgather(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        return self.mesh.fill(recv, send)

    def broadcast(self, buffer: Array, root: int) -> Request:
        return _Ended() if self.comm.Get_rank() == root else self.mesh.fill(buffer, None)

    def alltoall(
        self, send: Array, outgoing: Sequence[int], recv: Array, incoming: Sequence[int]
    ) -> Request:
        return self.mesh.fill(recv, send)

    def allreduce(self, buffer: Array) -> Request:
        return _Ended()

    def reduce(self, send: Array, recv: Array, root: int) -> Request:
        return self.mesh.fill(recv, send) if self.comm.Get_rank() == root else _Ended()

    def reduce_scatter(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        return self.mesh.fill(recv, send)

    def send(self, x: Array, rank: int, tag: int) -> Request:
        return _Ended()

    def receive(self, x: Array, rank: int, tag: int) -> Request:
        return self.mesh.fill(x, None)
