"""The one way in which mpicnn waits for MPI."""

from __future__ import annotations

import math
import os
import time
from typing import Protocol, runtime_checkable

_TESTS = 20
_YIELDS = 300
_NAP_S = 200e-6


class Request(Protocol):
    """Describe a request that has begun: it can be tested for its end."""

    def Test(self) -> bool:  # noqa: N802  (mpi4py's name)
        """Let it make progress; return whether it has ended."""
        ...


@runtime_checkable
class Ordered(Protocol):
    """Describe a request for which the device can wait instead of the host."""

    def order(self) -> None:
        """Let the device's further work depend on it; the host does not wait."""
        ...


def wait(request: Request, seconds: float = math.inf) -> None:
    """Wait for `request`, giving the core away while nothing arrives.

    A blocking MPI call spins, which starves the other ranks of an oversubscribed host, and keeps
    Python from running signal handlers. A few immediate tests catch what is there already, the
    yields a short wait, the naps a wait for a rank that still computes.
    For what a GPU carries out by itself the host does not wait: the GPU's stream does.
    Raises TimeoutError after `seconds`.
    """
    if isinstance(request, Ordered):
        request.order()
        return
    for _ in range(_TESTS):
        if request.Test():
            return
    for _ in range(_YIELDS):
        if request.Test():
            return
        os.sched_yield()
    end = time.monotonic() + seconds
    while not request.Test():
        if time.monotonic() > end:
            raise TimeoutError(f"other ranks did not come within {seconds:g} s")
        time.sleep(_NAP_S)
