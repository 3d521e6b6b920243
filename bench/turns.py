"""Let several programs take turns on the same cores and time them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter
from typing import NoReturn

import numpy as np

from mpicnn.comm.mesh import Mesh

TURN_S = 0.25  # a side's turn is at least one step and, unless told otherwise, about this long
PAUSE_S = 0.05  # between turns: threads of OpenMP and OpenBLAS spin on for some milliseconds
# Untimed, of steps shorter than that: threads that wake may share a core for some time slices.
SETTLE_S = 0.05
NAP_S = 5e-3  # between two looks of a rank that waits while rank 0 is at work alone


@dataclass(frozen=True)
class Side:
    """One of what is compared: `step` is None on the ranks that wait while rank 0 runs a peer.

    `finish` waits for what steps have left to a GPU; `begin` and `end` are called before and after
    steps that are timed.
    """

    name: str
    step: Callable[[], object] | None
    together: bool
    finish: Callable[[], object] = bool  # nothing
    begin: Callable[[], object] = bool
    end: Callable[[], object] = bool


class Cores:
    """The ranks' cores: rank 0 may use all of them while the others wait."""

    def __init__(self, mesh: Mesh) -> None:
        self.own = os.sched_getaffinity(0)
        mask = np.zeros(os.cpu_count() or 1)
        mask[[core for core in self.own if core < mask.size]] = 1
        self.all = {int(core) for core in np.flatnonzero(mesh.collect(mask).max(axis=0))}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let this thread, and those it starts, run on the cores of all ranks."""
        os.sched_setaffinity(0, self.all)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.own)


def meet(mesh: Mesh) -> None:
    """Wait for all ranks, ready to go on at once."""
    mesh.collect(np.zeros(1))


def rest(mesh: Mesh) -> None:
    """Wait for all ranks and leave the cores alone meanwhile."""
    request = mesh.world.comm.Ibarrier()
    while not request.Test():
        time.sleep(NAP_S)


def first(mesh: Mesh, value: float) -> float:
    """Return rank 0's value on all ranks."""
    return float(mesh.collect(np.array([value]))[0, 0])


def turn(mesh: Mesh, cores: Cores, side: Side, steps: int, untimed: int = 0) -> float:
    """Return the seconds of `steps` steps behind `untimed` ones; the slowest rank counts."""
    time.sleep(PAUSE_S)
    rest(mesh)
    seconds = 0.0
    if side.together:
        _seconds(side, untimed)
        side.begin()
        meet(mesh)
        since = perf_counter()
        _seconds(side, steps)
        meet(mesh)
        seconds = perf_counter() - since
        side.end()
    elif side.step is not None:
        with cores.shared():
            _seconds(side, untimed)
            side.begin()
            seconds = _seconds(side, steps)
            side.end()
    rest(mesh)
    return first(mesh, seconds)


def _seconds(side: Side, steps: int) -> float:
    since = perf_counter()
    for _ in range(steps):
        side.step()  # type: ignore[misc]
    side.finish()
    return perf_counter() - since


def measure(
    mesh: Mesh,
    cores: Cores,
    sides: Sequence[Side],
    repeats: int,
    limit: float,
    turn_s: float = TURN_S,
) -> dict[str, list[float]]:
    """Return seconds per step of every side, sample by sample; the sides take turns of `turn_s`.

    There are fewer samples than `repeats` where each side has had `limit` seconds.
    """
    begun = perf_counter()
    steps = {}
    for side in sides:
        turn(mesh, cores, side, 1)
        one = turn(mesh, cores, side, 1)
        if one < SETTLE_S:
            one = turn(mesh, cores, side, 1, ceil(SETTLE_S / one))
        untimed = ceil(SETTLE_S / one) if one < SETTLE_S else 0
        steps[side.name] = max(1, ceil(turn_s / one)), untimed
    samples: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            count, untimed = steps[side.name]
            samples[side.name].append(turn(mesh, cores, side, count, untimed) / count)
        if first(mesh, perf_counter() - begun) > limit * len(sides):
            break
    return samples


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the body when it takes longer than this."""

    def stop(number: int, frame: object) -> NoReturn:
        raise TimeoutError(f"not ready within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
