"""Collectives that have begun, and what keeps MPI working on them while layers compute."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import Literal

from mpi4py import MPI

from mpicnn.job.waiting import Request, wait
from mpicnn.ops.interface import Array

ProgressMode = Literal["poll", "thread", "none"]

NAP_S = 1e-3
"""Between two looks of the thread: at 10 Gbit/s the sockets' buffers of some MB last that long."""


def threads_allowed() -> bool:
    """Say whether MPI was started so that any thread may call it at any time."""
    return bool(MPI.Query_thread() == MPI.THREAD_MULTIPLE)


class Pending:
    """Hold a collective that has begun; `wait()` ends it and returns the local result.

    Arrays that MPI reads meanwhile are `held` until the end: mpi4py keeps them for some collectives
    only (4.1.2 not for sums and Iallgatherv), and MPI would send what the memory is used for next.
    `forget` is called once it has been waited for.
    `began` and `ended` (of `perf_counter`, s) say when it began and when its end was seen.
    """

    def __init__(
        self,
        request: Request | None,
        finish: Callable[[], Array],
        *held: Array,
        forget: Callable[[Pending], None] = lambda pending: None,
    ) -> None:
        self._request = request
        self._finish = finish
        self._held = held
        self._forget = forget
        self._lock = threading.Lock()
        self.began = self.ended = perf_counter()

    @classmethod
    def done(cls, y: Array) -> Pending:
        """Return a handle for a result that is there already."""
        return cls(None, lambda: y)

    def poll(self) -> bool:
        """Let MPI make progress; return whether the collective has ended or is waited for."""
        with self._lock:  # MPI forbids two threads to test one request at once
            if self._request is not None and self._request.Test():
                self._end()
            return self._request is None

    def wait(self) -> Array:
        """Wait for the end and return this rank's result."""
        with self._lock:
            request, self._request = self._request, None
        if request is not None:
            wait(request)
            self._end()
            self._forget(self)
        return self._finish()

    def _end(self) -> None:
        self._request = None
        self._held = ()
        self.ended = perf_counter()


class ProgressEngine:
    """Keep MPI making progress with one rank's collectives that nobody waits for yet.

    MPI libraries move data mostly inside MPI calls, so that somebody has to make some while layers
    compute. `progress` says who: "poll", whoever calls `poll`, as the executor does after every
    layer; "thread", a thread of its own, also in the middle of a long layer, which takes MPI's
    thread level "multiple"; "none", nobody: a collective is waited for as soon as it starts, so
    that nothing travels beside the computation. It may change while nothing is under way.
    """

    def __init__(self, progress: ProgressMode = "poll") -> None:
        self.progress = progress
        self._pending: set[Pending] = set()
        self._added = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Say whether anything is under way."""
        return bool(self._pending)

    def add(
        self,
        request: Request,
        finish: Callable[[], Array],
        *held: Array,
        ahead: bool = False,
    ) -> Pending:
        """Return a handle for `request`, whose result `finish` returns after the end.

        Arrays that MPI reads until then are `held`.
        `ahead` marks a message that its other end may begin much later: it never waits here.
        """
        pending = Pending(request, finish, *held, forget=self._forget)
        if self.progress == "none" and not ahead:
            pending.wait()
            return pending
        with self._added:
            self._pending.add(pending)
            self._added.notify()
        if self.progress == "thread" and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="MPI progress", daemon=True)
            self._thread.start()
        return pending

    def poll(self) -> None:
        """Let MPI make progress with everything under way, unless a thread does."""
        if self.progress == "poll":
            self._test()

    def _test(self) -> None:
        with self._added:
            pending = list(self._pending)
        for each in pending:
            if each.poll():
                self._forget(each)

    def _forget(self, pending: Pending) -> None:
        with self._added:
            self._pending.discard(pending)

    def _run(self) -> None:
        while True:
            with self._added:
                self._added.wait_for(lambda: self._pending and self.progress == "thread")
            self._test()
            time.sleep(NAP_S)
