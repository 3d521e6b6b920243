"""How arrays get from GPU to GPU over NCCL, where every rank has a GPU of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np
from cupy.cuda import nccl

from mpicnn.comm.wire import Wire, starts
from mpicnn.job.waiting import Request, wait
from mpicnn.ops import _cuda_arrays
from mpicnn.ops._cuda_transfer import enter, mark, reached
from mpicnn.ops.interface import Array

if TYPE_CHECKING:
    from mpi4py import MPI

ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES
TYPES = {np.dtype("float32"): nccl.NCCL_FLOAT32, np.dtype("float64"): nccl.NCCL_FLOAT64}


class Sent:
    """Hold a collective that the GPU carries out on a stream of its own."""

    def __init__(self, compute: Any, stream: Any) -> None:
        self._compute = compute
        self._device = cupy.cuda.Device()
        self._end = mark(stream)

    def Test(self) -> bool:  # noqa: N802  (mpi4py's name)
        """Return whether it has ended; if so, let the rank's stream depend on it."""
        enter(self._device)
        if not reached(self._end):
            return False
        self.order()
        return True

    def order(self) -> None:
        """Let the rank's stream wait for it (a stream dependency); the host does not wait."""
        self._compute.wait_event(self._end)


class NcclWire(Wire):
    """Begin collectives of one communicator on arrays in GPU memory.

    Collective: the ranks of `comm` meet by way of MPI first. All wires of a rank share `stream`, so
    that its collectives start in the same order everywhere. Messages between two ranks take the
    wire `messages`: a receive begun ahead would hold up the stream that the answer leaves by.
    """

    xp = cupy
    flat = staticmethod(_cuda_arrays.flat)

    def __init__(self, comm: MPI.Intracomm, stream: Any, messages: Wire) -> None:
        super().__init__(comm)
        self.stream = stream
        self.messages = messages
        self.compute = cupy.cuda.get_current_stream()
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        name = np.empty(ID_BYTES, np.uint8)
        if self.rank == 0:  # who asks for a name listens for the others
            name[:] = np.frombuffer(nccl.get_unique_id(), np.uint8)
        wait(comm.Ibcast(name, root=0))
        self.nccl = nccl.NcclCommunicator(self.size, name.tobytes(), self.rank)
        # Its end waits for the other ranks, in the same order everywhere. Objects end in no such
        # order, so it lasts as long as the process.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.nccl))

    def allgather(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Collect every rank's block into `recv`, in rank order."""
        to = starts(counts)

        def blocks(stream: int) -> None:
            for root, (first, count) in enumerate(zip(to, counts, strict=True)):
                if count:
                    self.nccl.broadcast(
                        _at(send, 0), _at(recv, first), count, TYPES[recv.dtype], root, stream
                    )

        def equal(stream: int) -> None:
            self.nccl.allGather(_at(send, 0), _at(recv, 0), counts[0], TYPES[recv.dtype], stream)

        return self._run(equal if len(set(counts)) == 1 else blocks)

    def broadcast(self, buffer: Array, root: int) -> Request:
        """Copy the root's buffer to all ranks."""
        return self._run(
            lambda stream: self.nccl.bcast(
                _at(buffer, 0), buffer.size, TYPES[buffer.dtype], root, stream
            )
        )

    def alltoall(
        self, send: Array, outgoing: Sequence[int], recv: Array, incoming: Sequence[int]
    ) -> Request:
        """Send block r of `send` to rank r and receive the blocks meant for this rank."""

        def blocks(stream: int) -> None:
            kind = TYPES[send.dtype]
            for rank, (first, count) in enumerate(zip(starts(outgoing), outgoing, strict=True)):
                if count:
                    self.nccl.send(_at(send, first), count, kind, rank, stream)
            for rank, (first, count) in enumerate(zip(starts(incoming), incoming, strict=True)):
                if count:
                    self.nccl.recv(_at(recv, first), count, kind, rank, stream)

        return self._run(blocks)

    def allreduce(self, buffer: Array) -> Request:
        """Sum `buffer` over the ranks, in place."""
        at = _at(buffer, 0)
        return self._run(
            lambda stream: self.nccl.allReduce(
                at, at, buffer.size, TYPES[buffer.dtype], nccl.NCCL_SUM, stream
            )
        )

    def reduce(self, send: Array, recv: Array, root: int) -> Request:
        """Sum `send` over the ranks into the root's `recv`."""
        return self._run(
            lambda stream: self.nccl.reduce(
                _at(send, 0), _at(recv, 0), send.size, TYPES[send.dtype], nccl.NCCL_SUM, root,
                stream,
            )
        )  # fmt: skip

    def reduce_scatter(self, send: Array, recv: Array, counts: Sequence[int]) -> Request:
        """Sum `send` over the ranks and leave block r of the sum on rank r."""
        kind = TYPES[send.dtype]

        def blocks(stream: int) -> None:
            for root, (first, count) in enumerate(zip(starts(counts), counts, strict=True)):
                if count:
                    self.nccl.reduce(
                        _at(send, first), _at(recv, 0), count, kind, nccl.NCCL_SUM, root, stream
                    )

        def equal(stream: int) -> None:
            self.nccl.reduceScatter(
                _at(send, 0), _at(recv, 0), counts[0], kind, nccl.NCCL_SUM, stream
            )

        return self._run(equal if len(set(counts)) == 1 else blocks)

    def send(self, x: Array, rank: int, tag: int) -> Request:
        """Send `x` to another rank."""
        return self.messages.send(x, rank, tag)

    def receive(self, x: Array, rank: int, tag: int) -> Request:
        """Receive `x` from another rank."""
        return self.messages.receive(x, rank, tag)

    def _run(self, calls: Callable[[int], None]) -> Request:
        """Do the calls as one, after what the rank's stream has been given so far."""
        self.stream.wait_event(mark(self.compute))
        nccl.groupStart()
        calls(self.stream.ptr)
        nccl.groupEnd()
        return Sent(self.compute, self.stream)


def _at(array: Any, first: int) -> int:
    """Return the address of item `first` of a flat array."""
    address: int = array.data.ptr + first * array.itemsize
    return address
