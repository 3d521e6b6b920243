"""How arrays in GPU memory get to other ranks over MPI, without the host waiting for the GPU."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import cupy

from mpicnn.comm.wire import Call, Wire
from mpicnn.job.waiting import Request
from mpicnn.ops import _cuda_arrays
from mpicnn.ops._cuda_transfer import enter, mark, pinned, reached
from mpicnn.ops.interface import Array

if TYPE_CHECKING:
    from mpi4py import MPI


class Line:
    """Connect a GPU to MPI: one queue of collectives for all wires of a rank.

    A collective is begun only once the GPU has computed what it sends, and nothing else waits for
    that. Collectives begin in the order in which they were asked for, as MPI wants it; `advance`,
    from whichever thread, begins those that may. Once a request has ended, the rank's stream
    depends on what arrived.
    Made where the device and the stream that computes are the current ones.
    """

    def __init__(self) -> None:
        self.device = cupy.cuda.Device()
        self.compute = cupy.cuda.get_current_stream()
        self.out = cupy.cuda.Stream(non_blocking=True)
        self.back = cupy.cuda.Stream(non_blocking=True)
        self._asked: deque[Passage] = deque()
        self._lock = threading.RLock()
        self._kept: deque[tuple[Any, Any]] = deque()

    def ask(self, passage: Passage) -> Passage:
        """Queue a collective: it begins once those before it have begun and its data is there."""
        with self._lock:
            self._asked.append(passage)
            self.advance()
        return passage

    def advance(self) -> None:
        """Begin what may begin; return pinned memory that no copy uses any more."""
        with self._lock:
            enter(self.device)
            while self._asked and reached(self._asked[0].ready):
                self._asked.popleft().begin()
            while self._kept and reached(self._kept[0][0]):
                self._kept.popleft()

    def keep(self, event: Any, memory: Any) -> None:
        """Keep memory until the event is done."""
        with self._lock:
            self._kept.append((event, memory))

    def test(self, passage: Passage) -> bool:
        """Let a passage make progress; return whether it has ended."""
        with self._lock:
            self.advance()
            return passage.ended or passage.end()


class Passage:
    """Hold a collective on GPU memory that MPI itself reads and writes (CUDA-aware MPI)."""

    def __init__(self, line: Line, call: Call, send: Array | None, recv: Array | None) -> None:
        self.line, self.call, self.send, self.recv = line, call, send, recv
        self.request: Request | None = None
        self.ended = False
        self.ready = mark(line.compute)

    def begin(self) -> None:
        """Begin the collective, its data being there."""
        self.request = self.call(self.send, self.recv)

    def end(self) -> bool:
        """End it if MPI has ended; return whether that is so."""
        self.ended = self.request is not None and self.request.Test()
        if self.ended:
            self.send = self.recv = None
        return self.ended

    def Test(self) -> bool:  # noqa: N802  (mpi4py's name)
        """Let it make progress; return whether it has ended."""
        return self.line.test(self)


class StagedPassage(Passage):
    """Hold a collective that goes through pinned host memory, for any MPI."""

    def __init__(self, line: Line, call: Call, send: Array | None, recv: Array | None) -> None:
        super().__init__(line, call, send, recv)
        self.host_send = None if send is None else pinned((send.size,), send.dtype)
        self.host_recv = self.host_send
        if recv is not None and recv is not send:
            self.host_recv = pinned((recv.size,), recv.dtype)
        if send is not None and send.size:
            # on a stream of its own, so that layers that follow need not wait for the copy
            line.out.wait_event(self.ready)
            _memory(send).copy_to_host_async(_address(self.host_send), send.nbytes, line.out)
            self.ready = mark(line.out)

    def begin(self) -> None:
        """Begin the collective on the copy of the data."""
        recv = None if self.recv is None else self.host_recv
        self.request = self.call(self.host_send, recv)

    def end(self) -> bool:
        """Bring what arrived to the GPU if MPI has ended; return whether that is so."""
        recv, memory = self.recv, (self.host_send, self.host_recv)
        if super().end() and recv is not None and recv.size:
            line = self.line
            _memory(recv).copy_from_host_async(_address(self.host_recv), recv.nbytes, line.back)
            landed = mark(line.back)
            line.compute.wait_event(landed)
            line.keep(landed, (recv, memory))
        return self.ended


class AwareWire(Wire):
    """Begin collectives on arrays in GPU memory that MPI reads and writes itself."""

    xp = cupy
    flat = staticmethod(_cuda_arrays.flat)
    passage = Passage

    def __init__(self, comm: MPI.Intracomm, line: Line) -> None:
        super().__init__(comm)
        self.line = line

    def _begin(self, call: Call, send: Array | None, recv: Array | None) -> Request:
        return self.line.ask(self.passage(self.line, call, send, recv))


class StagedWire(AwareWire):
    """Begin collectives on arrays in GPU memory through pinned host memory."""

    passage = StagedPassage


def _address(host: Array | None) -> int:
    assert host is not None
    return host.ctypes.data


def _memory(array: Any) -> Any:
    """Return CuPy's pointer to an array's memory."""
    return array.data
