"""Stand in for NCCL between threads or processes of one machine.

Calls are carried out in the order of their stream, by a thread of their own where nobody waits for
them. Unlike the library, what does not fit together (another call, count, type or root) is an error
here, and a send never waits for its receiver.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hostgpu import memory, numerics, streams
from hostgpu.exchange import ID_BYTES, Exchange, new_id

NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN, NCCL_AVG = range(5)
NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64 = range(6)
NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = range(6, 10)
NCCL_CHAR, NCCL_INT, NCCL_HALF, NCCL_FLOAT, NCCL_DOUBLE = 0, 2, 6, 7, 8

_DTYPES = dict(enumerate(np.dtype(name) for name in "i1 u1 i4 u4 i8 u8 f2 f4 f8".split()))
_SUMS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    NCCL_SUM: lambda parts: parts.sum(axis=0, dtype=parts.dtype),
    NCCL_PROD: lambda parts: parts.prod(axis=0, dtype=parts.dtype),
    NCCL_MAX: lambda parts: parts.max(axis=0),
    NCCL_MIN: lambda parts: parts.min(axis=0),
    NCCL_AVG: lambda parts: parts.mean(axis=0, dtype=parts.dtype),
}
_STATUS = {4: "NCCL_ERROR_INVALID_ARGUMENT", 5: "NCCL_ERROR_INVALID_USAGE"}
available = True


class NcclError(RuntimeError):
    """A status of NCCL."""

    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        super().__init__(f"{_STATUS[status]}: {text}")


def get_version() -> int:
    return 22703


def get_build_version() -> int:
    return get_version()


def get_unique_id() -> bytes:
    return new_id()


@dataclass
class _Call:
    """One call: begun when the stream gets there, ended when `end` no longer returns False."""

    begin: Callable[[], None]
    end: Callable[[], bool]
    queue: streams.Queue


class _Group(threading.local):
    """The calls between a thread's groupStart and groupEnd."""

    depth = 0

    def __init__(self) -> None:
        self.calls: list[_Call] = []


_group = _Group()


def groupStart() -> None:
    _group.depth += 1


def groupEnd() -> None:
    if not _group.depth:
        raise NcclError(5, "groupEnd without groupStart")
    _group.depth -= 1
    if _group.depth:
        return
    calls, _group.calls = _group.calls, []
    for queue in {id(call.queue): call.queue for call in calls}.values():
        mine = [call for call in calls if call.queue is queue]
        streams.drive(queue.put(_together(mine)))


def _together(calls: list[_Call]) -> streams.Work:
    """Return work that begins all calls and waits for all: each may need another one first."""
    waiting: list[_Call] | None = None

    def work() -> object:
        nonlocal waiting
        if waiting is None:
            for call in calls:
                call.begin()
            waiting = calls
        waiting = [call for call in waiting if not call.end()]
        return streams.PENDING if waiting else None

    return work


class NcclCommunicator:
    """One rank's part of a communicator; making it waits for all ranks, for a minute at most."""

    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None) -> None:
        if not isinstance(commId, bytes):
            raise TypeError(f"Expected bytes, got {type(commId).__name__}")
        if len(commId) != ID_BYTES:
            raise ValueError(f"commId length {len(commId)} != {ID_BYTES}.")
        if not 0 <= rank < ndev:
            raise NcclError(4, f"rank {rank} of {ndev}")
        self._device = streams.device().number
        self._exchange: Exchange | None = Exchange(commId, ndev, rank)
        self._rank, self._size = rank, ndev
        devices = self._exchange.meet(f"{ndev} {socket.gethostname()} GPU {self._device}")
        if len(set(devices)) < ndev:
            raise NcclError(5, f"Duplicate GPU detected: {devices}")

    def destroy(self) -> None:
        if self._exchange is not None:
            self._exchange.leave()
            self._exchange = None

    abort = destroy

    def device_id(self) -> int:
        return self._device

    def rank_id(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size

    def check_async_error(self) -> None:
        return None

    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        def use(parts: np.ndarray) -> np.ndarray:
            return _SUMS[op](parts)

        self._collective("allReduce", sendbuf, count, recvbuf, count, datatype, use, stream, op)

    def reduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int
    ) -> None:
        def use(parts: np.ndarray) -> np.ndarray:
            return _SUMS[op](parts)

        into = count if self._rank == root else 0
        self._collective("reduce", sendbuf, count, recvbuf, into, datatype, use, stream, (op, root))

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        def use(parts: np.ndarray) -> np.ndarray:
            return parts[root]

        self._check_rank(root)
        source = sendbuff if self._rank == root else recvbuff
        self._collective("broadcast", source, count, recvbuff, count, datatype, use, stream, root)

    def bcast(self, buff: int, count: int, datatype: int, root: int, stream: int) -> None:
        self.broadcast(buff, buff, count, datatype, root, stream)

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        def use(parts: np.ndarray) -> np.ndarray:
            return _SUMS[op](parts)[self._rank * recvcount :][:recvcount]

        total = recvcount * self._size
        self._collective(
            "reduceScatter", sendbuf, total, recvbuf, recvcount, datatype, use, stream, op
        )

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        def use(parts: np.ndarray) -> np.ndarray:
            return parts.reshape(-1)

        total = count * self._size
        self._collective("allGather", sendbuf, count, recvbuf, total, datatype, use, stream)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._check_rank(peer)
        data = _array(sendbuf, count, datatype)
        exchange, head = self._joined(), f"{count} {datatype}"
        self._start(lambda: exchange.send(peer, head, data), lambda: True, stream)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        self._check_rank(peer)
        into = _array(recvbuf, count, datatype)
        exchange, head = self._joined(), f"{count} {datatype}"
        path = None

        def begin() -> None:
            nonlocal path
            path = exchange.expect(peer)

        def end() -> bool:
            message = exchange.receive(path)
            if message is None:
                return False
            if message[0] != head:
                raise NcclError(5, f"received {message[0]}, wanted {head}")
            into[:] = np.frombuffer(message[1], into.dtype)
            return True

        self._start(begin, end, stream)

    def _collective(
        self,
        name: str,
        sendbuf: int,
        count: int,
        recvbuf: int,
        into: int,
        datatype: int,
        use: Callable[[np.ndarray], np.ndarray],
        stream: int,
        detail: Any = "",
    ) -> None:
        source, target = _array(sendbuf, count, datatype), _array(recvbuf, into, datatype)
        exchange, head = self._joined(), f"{name} {count} {datatype} {detail}"
        number = None

        def begin() -> None:
            nonlocal number
            number = exchange.say(head, source)

        def end() -> bool:
            found = exchange.hear(number)
            if found is None:
                return False
            if any(other != head for other, _ in found):
                raise NcclError(5, f"calls differ: {sorted({other for other, _ in found})}")
            if into:
                parts = np.stack([np.frombuffer(data, source.dtype) for _, data in found])
                target[:] = use(parts)
            return True

        self._start(begin, end, stream)

    def _start(self, begin: Callable[[], None], end: Callable[[], bool], stream: int) -> None:
        queue = streams.find(stream)
        if queue.device.number != self._device:
            raise NcclError(5, "the stream is another device's")
        groupStart()
        _group.calls.append(_Call(begin, end, queue))
        groupEnd()

    def _joined(self) -> Exchange:
        if self._exchange is None:
            raise NcclError(5, "the communicator was destroyed")
        return self._exchange

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self._size:
            raise NcclError(4, f"rank {rank} of {self._size}")


def _array(address: int, count: int, datatype: int) -> np.ndarray:
    """Return the array at a device address; AddressError if it leaves a block."""
    if datatype not in _DTYPES:
        raise NcclError(4, f"data type {datatype}")
    try:
        return numerics.strided(address, _DTYPES[datatype], (count,), (1,))
    except memory.AddressError as error:
        raise memory.AddressError(f"NCCL: {error}") from None
