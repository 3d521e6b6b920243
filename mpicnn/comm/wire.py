"""How a rank's arrays get to other ranks: from host memory, where MPI takes them as they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from types import ModuleType
from typing import Any

import numpy as np
from mpi4py import MPI

from mpicnn.job.waiting import Request
from mpicnn.ops import _host as host
from mpicnn.ops.interface import Array

Call = Callable[[Any, Any], Request]


class Wire:
    """Begin collectives of one communicator on arrays in host memory.

    `xp` is the module of the arrays. They are flat and contiguous, as `flat` makes them, counts are
    numbers of items per rank, and they must stay unchanged and alive until the request has ended.
    All ranks begin the same collectives in the same order.
    """

    xp: ModuleType = np
    flat = staticmethod(host.flat)

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm

    def allgather(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Collect every rank's block into `recv`, in rank order."""
        return self._begin(
            lambda s, r: self.comm.Iallgatherv(s, [r, (counts, starts(counts))]), send, recv
        )

    def broadcast(self, buffer: Array, root: int) -> Request:
        """Copy the root's buffer to all ranks."""
        if self.comm.Get_rank() == root:
            return self._begin(lambda s, r: self.comm.Ibcast(s, root=root), buffer, None)
        return self._begin(lambda s, r: self.comm.Ibcast(r, root=root), None, buffer)

    def alltoall(
        self, send: Array, outgoing: Sequence[int], recv: Array, incoming: Sequence[int]
    ) -> Request:
        """Send block r of `send` to rank r and receive the blocks meant for this rank."""
        return self._begin(
            lambda s, r: self.comm.Ialltoallv(
                [s, (outgoing, starts(outgoing))], [r, (incoming, starts(incoming))]
            ),
            send,
            recv,
        )

    def allreduce(self, buffer: Array) -> Request:
        """Sum `buffer` over the ranks, in place."""
        return self._begin(
            lambda s, r: self.comm.Iallreduce(MPI.IN_PLACE, r, op=MPI.SUM), buffer, buffer
        )

    def reduce(self, send: Array, recv: Array, root: int) -> Request:
        """Sum `send` over the ranks into the root's `recv`."""
        here = recv if self.comm.Get_rank() == root else None
        return self._begin(lambda s, r: self.comm.Ireduce(s, r, MPI.SUM, root), send, here)

    def reduce_scatter(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Sum `send` over the ranks and leave block r of the sum on rank r."""
        return self._begin(
            lambda s, r: self.comm.Ireduce_scatter(s, r, counts, op=MPI.SUM), send, recv
        )

    def send(self, x: Array, rank: int, tag: int) -> Request:
        """Send `x` to another rank."""
        return self._begin(lambda s, r: self.comm.Isend(s, rank, tag), x, None)

    def receive(self, x: Array, rank: int, tag: int) -> Request:
        """Receive `x` from another rank."""
        return self._begin(lambda s, r: self.comm.Irecv(r, rank, tag), None, x)

    def _begin(self, call: Call, send: Array | None, recv: Array | None) -> Request:
        """Begin `call` on what is sent and received; the same array twice for a sum in place."""
        return call(send, recv)


def starts(counts: Sequence[int]) -> list[int]:
    """Return where each rank's block begins."""
    return [0, *accumulate(counts)][:-1]
