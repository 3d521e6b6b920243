"""All ranks of a job in one process: threads that exchange NumPy arrays through shared slots.

`ThreadComm` offers the part of mpi4py's communicator that `mpicnn.comm.mesh` uses, so that every
plan can be run for any number of ranks where a test runs, with or without MPI.
"""

# ruff: noqa: N802  (the names are mpi4py's)

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DEADLINE = 60.0


class _Board:
    """What the ranks of one communicator share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.slots: list[Any] = [None] * size
        self.split: dict[Any, _Board] = {}
        self.sent: defaultdict[Any, list[Any]] = defaultdict(list)
        self.received: Counter[Any] = Counter()

    def abort(self) -> None:
        self.barrier.abort()
        for inner in self.split.values():
            inner.abort()


class _Done:
    def Test(self) -> bool:
        return True


class _Arrival:
    """A message to be received; there once the sender has put it on the board."""

    def __init__(self, board: _Board, key: Any, buffer: Any) -> None:
        self._board, self._key, self._buffer = board, key, buffer
        self._number = board.received[key]  # messages go to receives in the order they were posted
        board.received[key] += 1
        self._end = time.monotonic() + DEADLINE
        self._done = False

    def Test(self) -> bool:
        if not self._done:
            if self._board.barrier.broken or time.monotonic() > self._end:
                raise threading.BrokenBarrierError
            messages = self._board.sent[self._key]
            if len(messages) > self._number:
                value, messages[self._number] = messages[self._number], None
                assert value.shape == self._buffer.shape
                self._buffer[...] = value
                self._done = True
        return self._done


class ThreadComm:
    """One rank's end of a communicator between threads; collectives end where they start."""

    def __init__(self, board: _Board, rank: int) -> None:
        self._board = board
        self._rank = rank

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._board.size

    def _exchange(self, mine: Any) -> list[Any]:
        self._board.slots[self._rank] = mine
        self._board.barrier.wait(DEADLINE)
        everyone = list(self._board.slots)
        self._board.barrier.wait(DEADLINE)
        return everyone

    def Split(self, color: int, key: int) -> ThreadComm:
        everyone = self._exchange((color, key, self._rank))
        members = sorted((k, r) for c, k, r in everyone if c == color)
        if members[0][1] == self._rank:
            self._board.split[color] = _Board(len(members))
        self._board.barrier.wait(DEADLINE)
        return ThreadComm(self._board.split[color], members.index((key, self._rank)))

    def Isend(self, buffer: Any, dest: int, tag: int) -> _Done:
        self._board.sent[self._rank, dest, tag].append(buffer.copy())
        return _Done()

    def Irecv(self, buffer: Any, source: int, tag: int) -> _Arrival:
        return _Arrival(self._board, (source, self._rank, tag), buffer)

    def Iallgatherv(self, send: Any, recv: Any) -> _Done:
        buffer, (counts, starts) = recv
        for r, block in enumerate(self._exchange(send.copy())):
            assert block.size == counts[r]
            buffer[starts[r] : starts[r] + counts[r]] = block
        return _Done()

    def Iallgather(self, send: Any, recv: Any) -> _Done:
        recv[:] = np.stack(self._exchange(send.copy()))
        return _Done()

    def Ibcast(self, buffer: Any, root: int) -> _Done:
        value = self._exchange(buffer.copy())[root]
        assert value.size == buffer.size
        buffer[:] = value
        return _Done()

    def Ialltoallv(self, send: Any, recv: Any) -> _Done:
        everyone = self._exchange((send[0].copy(), *send[1]))
        buffer, (counts, starts) = recv
        for r, (block, out, at) in enumerate(everyone):
            assert out[self._rank] == counts[r]
            buffer[starts[r] : starts[r] + counts[r]] = block[
                at[self._rank] : at[self._rank] + out[self._rank]
            ]
        return _Done()

    def Iallreduce(self, _in_place: Any, buffer: Any, op: Any = None) -> _Done:
        buffer[...] = sum(self._exchange(buffer.copy()))
        return _Done()

    def Ireduce(self, send: Any, recv: Any, op: Any, root: int) -> _Done:
        total = sum(self._exchange(send.copy()))
        if self._rank == root:
            recv[:] = total
        return _Done()

    def Ireduce_scatter(self, send: Any, recv: Any, counts: Sequence[int], op: Any = None) -> _Done:
        total = sum(self._exchange(send.copy()))
        start = sum(counts[: self._rank])
        recv[:] = total[start : start + counts[self._rank]]
        return _Done()


def run_ranks(size: int, main: Callable[[Any], Any]) -> list[Any]:
    """Run `main(comm)` as `size` ranks and return their results in rank order.

    The first exception of any rank is raised here, after the other ranks were released.
    """
    board = _Board(size)
    results: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def body(rank: int) -> None:
        try:
            results[rank] = main(ThreadComm(board, rank))
        except BaseException as error:
            errors[rank] = error
            board.abort()

    threads = [threading.Thread(target=body, args=(r,)) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = [e for e in errors if e is not None]
    own = [e for e in raised if not isinstance(e, threading.BrokenBarrierError)]
    for error in own or raised:
        raise error
    return results
