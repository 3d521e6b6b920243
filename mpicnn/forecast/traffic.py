"""When messages arrive: a host has one link to the others, which serves one message at a time."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import ceil, log2, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.move import Hop, sum_sent
from mpicnn.division.operations import Call
from mpicnn.forecast.cost import Counter
from mpicnn.forecast.durations import Times
from mpicnn.forecast.machine import Machine


class Exchange(NamedTuple):
    """Describe a collective among the ranks along `axes` of a grid.

    `volume` are the bytes through each rank's link, in messages that follow each other in `steps`.
    `paired` ranks send to all others directly; else blocks go around in a ring, so that what passes
    between two hosts does not grow with their ranks.
    """

    axes: tuple[int, ...]
    volume: Any
    steps: float
    paired: bool = False


class Arrival(NamedTuple):
    """Say when a message has arrived on every rank of a grid, s, and how long it keeps the core."""

    at: Times
    busy: Times


class Alone(NamedTuple):
    """Say what a collective costs every rank of a grid where nothing else travels, s.

    `took` is its time, `busy` what of it keeps the core. Where it leaves the host, `link` is how
    long it keeps the links of the hosts of the rank's group, `own` that of the rank's host at
    least, and `late` how much later it arrives; elsewhere these are 0.
    """

    took: Times
    busy: Times
    link: Times
    own: Times
    late: Times


def carried(counter: Counter, hop: Hop) -> Exchange:
    """Return what a hop exchanges, with the usual algorithms of MPI for long messages.

    All-gather and reduce-scatter pass each of the K blocks once through every link but one; where
    one rank alone has a block, it is scattered and then gathered (Thakur et al. 2005, "Optimization
    of collective communication operations in MPICH").
    """
    ranks, axis = counter.grid[hop.axis], hop.axis
    sent = np.broadcast_to(counter.hop(hop).bytes_sent, counter.grid)
    steps = ceil(log2(ranks))
    match hop.move.collective:
        case "all-reduce":
            return Exchange((axis,), sent, 2 * steps)
        case "all-to-all":
            before, after = (
                counter.items(hop.shape, hop.layout(end)) * counter.itemsize
                for end in (False, True)
            )
            return Exchange((axis,), np.maximum(sent, sent - before + after), steps, paired=True)
    whole = sent.sum(axis, keepdims=True) / max(1, ranks - 1)
    # what an all-gather counts as sent is K - 1 times a block, a reduce-scatter all but a block
    blocks = sent if hop.move.collective == "all-gather" else whole - sent
    alone = (blocks > 0).sum(axis, keepdims=True) == 1
    twice = np.where(alone & (ranks > 2), 2, 1)
    return Exchange((axis,), twice * whole * (ranks - 1) / ranks, steps * int(twice.max()))


def batch_sums(counter: Counter, call: Call, way: int) -> tuple[Exchange, NDArray[np.bool_]]:
    """Return what a layer's sums over a divided batch exchange, forward (0) or back (1), and which
    ranks take part."""
    work = counter.batch_sums(call, way)
    steps = sum(2 * ceil(log2(counter.grid[axis])) for axis in call.sum_axes)
    taking_part = np.broadcast_to(work.messages, counter.grid) > 0
    return Exchange(call.sum_axes, work.bytes_sent, steps), taking_part


def summed(counter: Counter, names: Iterable[str], axes: tuple[int, ...]) -> Exchange:
    """Return what the sum of parameters' gradients over the ranks along some axes exchanges, all in
    one message."""
    ranks = prod(counter.grid[axis] for axis in axes)
    items = sum(counter.here[name] for name in names)
    volume = sum_sent(items * counter.itemsize, ranks)
    return Exchange(axes, volume, 2 * ceil(log2(ranks)))


class Traffic:
    """Follow what travels over the links of a machine, in the order in which it begins."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._free = np.zeros(max(machine.hosts) + 1)

    def collective(self, hosts: NDArray[np.int64], begun: Times, what: Exchange) -> Arrival:
        """Return when a collective ends that every rank of a grid begins at its own time.

        `hosts` are the numbers of the ranks' hosts. Nothing moves until all ranks of a group have
        begun.
        """
        inside, between = self.machine.inside, self.machine.between
        axes = what.axes
        begin = begun.max(axes, keepdims=True)
        volume = np.broadcast_to(what.volume, hosts.shape)
        longest = inside.seconds(volume.max(axes, keepdims=True), what.steps)
        crossing = hosts.max(axes, keepdims=True) != hosts.min(axes, keepdims=True)
        end = begin + longest
        busy = inside.busy * longest
        if crossing.any():
            crossed = np.broadcast_to(crossing, hosts.shape)
            load = self._load(hosts, np.where(crossed, _flows(hosts, volume, what), 0))
            took = between.seconds(load[hosts].max(axes, keepdims=True), what.steps)
            first = np.maximum(begin, self._free[hosts].max(axes, keepdims=True))
            self._occupy(hosts, first + took - what.steps * between.latency, crossed)
            end = np.where(crossing, first + took, end)
            busy = np.where(crossing, between.busy * took, busy)
        return Arrival(np.broadcast_to(end, hosts.shape), np.broadcast_to(busy, hosts.shape))

    def alone(self, hosts: NDArray[np.int64], what: Exchange) -> Alone:
        """Return what a collective costs on links where nothing has travelled yet."""
        done = self.collective(hosts, np.zeros(hosts.shape), what)
        low, high = (end(axis=what.axes, keepdims=True) for end in (hosts.min, hosts.max))
        crossing = np.broadcast_to(low != high, hosts.shape)
        volume = np.broadcast_to(what.volume, hosts.shape)
        own = self._load(hosts, np.where(crossing, _flows(hosts, volume, what), 0))[hosts]
        between, late = self.machine.between, what.steps * self.machine.between.latency
        link, own = done.at - late, own / between.bandwidth
        return Alone(
            done.at, done.busy, *(np.where(crossing, each, 0) for each in (link, own, late))
        )

    def message(
        self, hosts: tuple[NDArray[np.int64], NDArray[np.int64]], begun: Times, volume: Any
    ) -> Arrival:
        """Return when every rank of a stage's grid has the message of its counterpart.

        `hosts` are those of the senders and of the receivers.
        """
        inside, between = self.machine.inside, self.machine.between
        here, there = hosts
        volume = np.broadcast_to(volume, here.shape)
        crossing = here != there
        flows = np.where(crossing, volume, 0)
        loads = (self._load(end, flows)[end] for end in hosts)
        took = np.where(crossing, between.seconds(np.maximum(*loads), 1), inside.seconds(volume, 1))
        free = np.where(crossing, np.maximum(self._free[here], self._free[there]), 0)
        end = np.maximum(begun, free) + took
        for side in hosts:
            self._occupy(side, end - between.latency, crossing)
        return Arrival(end, np.where(crossing, between.busy, inside.busy) * took)

    def _load(self, hosts: NDArray[np.int64], flows: Times) -> Times:
        """Return the bytes through every host's link."""
        size = self._free.size
        return np.bincount(hosts.ravel(), weights=flows.ravel(), minlength=size).astype(float)

    def _occupy(self, hosts: NDArray[np.int64], until: Times, where: NDArray[np.bool_]) -> None:
        """Keep the links of ranks busy: other messages begin when their last byte is on its way."""
        np.maximum.at(self._free, hosts[where], np.broadcast_to(until, hosts.shape)[where])


def _flows(hosts: NDArray[np.int64], volume: Times, what: Exchange) -> Times:
    """Return the bytes that every rank adds to what passes through its host's link."""
    near = _neighbours(hosts.tobytes(), hosts.shape, what.axes)
    if not what.paired:
        return volume / near
    ranks = prod(hosts.shape[axis] for axis in what.axes)
    return volume * (ranks - near) / max(1, ranks - 1)


@lru_cache(maxsize=64)
def _neighbours(hosts: bytes, shape: tuple[int, ...], axes: tuple[int, ...]) -> Times:
    """Return how many ranks of its group every rank's host has, the rank included."""
    whole = np.frombuffer(hosts, np.int64).reshape(shape)
    last = tuple(range(-len(axes), 0))
    groups = np.moveaxis(whole, axes, last)
    rows = groups.reshape(-1, prod(groups.shape[-len(axes) :]))
    pairs = np.arange(len(rows))[:, None] * (whole.max() + 1) + rows  # a number per group and host
    _, place, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return np.moveaxis(counts[place].reshape(groups.shape), last, axes).astype(float)
