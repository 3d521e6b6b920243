"""The ranks as a small grid; here the collectives of a step are begun and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import cast

import numpy as np
from mpi4py import MPI
from numpy.typing import DTypeLike

from mpicnn.comm.pending import Pending, ProgressEngine, ProgressMode
from mpicnn.comm.wire import Wire
from mpicnn.division.placement import coordinates
from mpicnn.job.waiting import Request, wait
from mpicnn.ops.interface import Array

Wires = Callable[[MPI.Intracomm], Wire]
"""What makes the wire of a communicator; its ranks call together."""

_STAGE = 42  # the least tag of what passes between stages


class Group:
    """Begin and count collectives among the ranks along one mesh axis, or among all of them.

    Arrays are of `xp`, flat and contiguous as `flat` makes them; counts are numbers of items per
    rank. `sent` counts this rank's bytes by the rule of `Move.items_sent`, from the counts that
    are really given. What moves begin is handed to `engine`; how it travels is the wire's affair.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        engine: ProgressEngine | None = None,
        wires: Wires = Wire,
    ) -> None:
        self.comm = comm
        self.wire = wires(comm)
        self.xp, self.flat = self.wire.xp, self.wire.flat
        self.engine = engine or ProgressEngine()
        self.size: int = comm.Get_size()
        self.rank: int = comm.Get_rank()
        self.sent = 0.0

    def allgather(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Collect every rank's block into `recv`, in rank order."""
        self._count(counts[self.rank] * (self.size - 1), send)
        owner = _only(counts)
        if owner is None:
            return self.wire.allgather(send, recv, counts)
        if owner == self.rank:
            recv[:] = send
        return self.wire.broadcast(recv, owner)

    def alltoall(
        self, send: Array, outgoing: Sequence[int], recv: Array, incoming: Sequence[int]
    ) -> Request:
        """Send block r of `send` to rank r and receive the blocks meant for this rank."""
        self._count(sum(outgoing) - outgoing[self.rank], send)
        return self.wire.alltoall(send, outgoing, recv, incoming)

    def allreduce(self, buffer: Array) -> Request:
        """Sum `buffer` over the ranks, in place."""
        self._count(2 * (self.size - 1) / self.size * buffer.size, buffer)
        return self.wire.allreduce(buffer)

    def reduce_scatter(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Sum `send` over the ranks and leave block r of the sum on rank r."""
        self._count(send.size - counts[self.rank], send)
        owner = _only(counts)
        if owner is None:
            return self.wire.reduce_scatter(send, recv, counts)
        return self.wire.reduce(send, recv, owner)

    def _count(self, items: float, buffer: Array) -> None:
        self.sent += items * buffer.itemsize


class Link:
    """Send to the rank at the same place in a neighbouring stage, and receive from it.

    What is sent in one direction under one number arrives in the order in which it was sent.
    """

    def __init__(self, wire: Wire, rank: int, engine: ProgressEngine) -> None:
        self.wire = wire
        self.rank = rank
        self.engine = engine or ProgressEngine()
        self.sent = 0.0

    def send(self, x: Array, number: int = 0) -> Pending:
        """Begin to send `x`, which must stay unchanged until that has ended.

        It goes to the receive of the same `number`, in the order of these.
        """
        flat = self.wire.flat(x)
        self.sent += flat.nbytes
        request = self.wire.send(flat, self.rank, _STAGE + number)
        return self.engine.add(request, lambda: flat, ahead=True)

    def receive(self, shape: Sequence[int], dtype: DTypeLike, number: int = 0) -> Pending:
        """Begin to receive what the other rank sends next under this `number`."""
        x = self.wire.xp.empty(tuple(shape), dtype)
        request = self.wire.receive(x.reshape(-1), self.rank, _STAGE + number)
        return self.engine.add(request, lambda: x, ahead=True)


def _only(counts: Sequence[int]) -> int | None:
    """Return the one rank with a block, if there is exactly one among several."""
    holders = [r for r, count in enumerate(counts) if count]
    return holders[0] if len(holders) == 1 else None


class Mesh:
    """Arrange the ranks of a job as a grid, or as one grid per pipeline stage (`depth`).

    `grid` has one length per axis: (K,) in ordinary use, (data, model) at scale; ranks count
    along the last axis first, then along the other, then the stages. `world` is all ranks, `peers`
    those of this rank's `stage`, `axes` the groups of them that differ in one coordinate only.
    `before` and `behind` lead to the neighbouring stages where there are any. `progress` says who
    lets MPI make progress (`ProgressEngine`), `wires` how the arrays of this rank's device travel.
    Raises ValueError where there are not as many places as ranks.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        grid: Sequence[int] | None = None,
        depth: int = 1,
        progress: ProgressMode = "poll",
        wires: Wires = Wire,
    ) -> None:
        self.wires = wires
        self.engine = ProgressEngine(progress)
        self.world = Group(comm, self.engine, wires)
        self.grid: tuple[int, ...] = tuple(grid) if grid else (self.world.size // depth,)
        places = prod(self.grid)
        if places * depth != self.world.size:
            raise ValueError(f"{depth} grid(s) of {self.grid} do not hold {self.world.size} ranks")
        self.stage, place = divmod(self.world.rank, places)
        self.coords = coordinates(place, self.grid)
        self.peers = self.world
        self.before: Link | None = None
        self.behind: Link | None = None
        if depth > 1:
            self.peers = self._group(comm.Split(self.stage, place))
            if self.stage:
                self.before = Link(self.world.wire, self.world.rank - places, self.engine)
            if self.stage + 1 < depth:
                self.behind = Link(self.world.wire, self.world.rank + places, self.engine)
        self.axes: tuple[Group, ...] = (self.peers,)
        if len(self.grid) > 1:
            self.axes = tuple(self._along(axis) for axis in range(len(self.grid)))

    def _along(self, axis: int) -> Group:
        others = [c for a, c in enumerate(self.coords) if a != axis]
        lengths = [n for a, n in enumerate(self.grid) if a != axis]
        color = int(np.ravel_multi_index(others, lengths))
        return self._group(self.peers.comm.Split(color, self.coords[axis]))

    def _group(self, comm: MPI.Comm) -> Group:
        return Group(cast(MPI.Intracomm, comm), self.engine, self.wires)

    def group(self, axes: Sequence[int]) -> Group:
        """Return the group of a stage's ranks that differ in the given axes: one axis, or all."""
        if len(axes) == 1:
            return self.axes[axes[0]]
        if len(axes) == len(self.axes):
            return self.peers
        raise ValueError(f"no group of ranks for axes {tuple(axes)}")

    def sum(self, values: Array) -> Pending:
        """Begin to sum a small array over all ranks; not counted as traffic of the plan."""
        total = np.array(values)
        request = self.world.comm.Iallreduce(MPI.IN_PLACE, total, op=MPI.SUM)
        return self.engine.add(request, lambda: total)

    def collect(self, values: Array) -> Array:
        """Return every rank's small array, stacked in rank order, on all ranks."""
        mine = np.array(values, order="C")
        table = np.empty((self.world.size, *mine.shape), mine.dtype)
        wait(self.world.comm.Iallgather(mine, table))
        return table

    def texts(self, text: str) -> list[str]:
        """Return every rank's text, in rank order, on all ranks. Collective."""
        data = np.frombuffer(text.encode(), np.uint8)
        longest = int(self.collect(np.array(data.size)).max())
        table = self.collect(np.pad(data, (0, longest - data.size)))
        return [bytes(row).rstrip(b"\0").decode() for row in table]

    @property
    def library(self) -> str:
        """Return the MPI library's name and version in a few words."""
        first = MPI.Get_library_version().splitlines()[0].strip(" \0")
        words = first.replace("Version:", "").replace(",", " ").split()
        return " ".join(words[: words.index("package:")] if "package:" in words else words[:4])

    @property
    def sent(self) -> float:
        """Return the bytes that this rank has sent as the plan says."""
        ways = {id(w): w for w in (self.peers, *self.axes, self.before, self.behind) if w}
        return sum(w.sent for w in ways.values())
