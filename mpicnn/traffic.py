"""Parameters on their way to where they are computed with, and gradients on their way home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from mpicnn.clock import Clock
from mpicnn.mesh import Mesh
from mpicnn.program import Compute, Hop, Weight
from mpicnn.redistribution import redistribute
from mpicnn.state import Arrays, State
from mpicnn.underway import Pending

Array = NDArray[Any]


class Weights:
    """The parameters as layers compute with them; those that live elsewhere set out at once."""

    def __init__(self, mesh: Mesh, clock: Clock, weights: Iterable[Weight], state: State) -> None:
        self.mesh = mesh
        self.clock = clock
        self.state = state
        self.buffers = state.buffers
        self.here: Arrays = {}
        self.travelling: dict[str, Journey] = {}
        self.weights = {weight.name: weight for weight in weights}
        self.renew(self.weights)

    def renew(self, names: Iterable[str]) -> None:
        """Take up what the named parameters have become at home."""
        for name in names:
            weight = self.weights[name]
            value = (self.state.buffers if weight.buffer else self.state.params)[name]
            if weight.fetch:
                self.travelling[name] = Journey(self.mesh, weight.fetch, value)
            else:
                self.here[name] = value

    def of(self, item: Compute) -> Arrays:
        """Return a layer's parameters and buffers by their short names, waiting where needed."""
        for name in item.weights.values():
            if name in self.travelling:
                since = self.clock.now()
                journey = self.travelling.pop(name)
                self.here[name] = journey.wait()
                self.clock.travelled(name, journey.pending.began, journey.pending.ended)
                self.clock.add(item.name, "communication", since)
        return {short: self.here[name] for short, name in item.weights.items()}


class Journey:
    """A tensor on its way over one or more hops."""

    def __init__(self, mesh: Mesh, hops: tuple[Hop, ...], x: Array) -> None:
        self.mesh = mesh
        self.hops = hops
        self.pending = self._start(0, x)

    def _start(self, at: int, x: Array) -> Pending:
        hop = self.hops[at]
        return redistribute(self.mesh.axes[hop.axis], hop.move, x, hop.shape)

    def wait(self) -> Array:
        """Wait for the end, starting hop after hop, and return what arrived."""
        x = self.pending.wait()
        for at in range(1, len(self.hops)):
            x = self._start(at, x).wait()
        return x


class Homecoming:
    """Bring gradients home as soon as they exist, while the backward pass goes on.

    Gradients that need a plain sum over the same ranks share a bucket, closed when it is full;
    the others travel one by one. All ranks add in the same order, so that their collectives match.
    Until `last` is set, gradients of the head's rounds are kept and summed.
    """

    def __init__(self, mesh: Mesh, clock: Clock, weights: Iterable[Weight], bucket: int) -> None:
        self.mesh = mesh
        self.clock = clock
        self.limit = bucket
        self.weights = {w.name: w for w in weights if not w.buffer}
        self.last = True
        self.waiting: Arrays = {}
        self.home: Arrays = {}
        self.open: dict[tuple[int, ...], list[str]] = {}
        self.journeys: dict[str, Journey] = {}
        self.buckets: list[tuple[list[str], Pending]] = []

    def sums(self, names: Mapping[str, str]) -> Arrays:
        """Return the gradients kept so far of the parameters with these names, by their keys."""
        return {key: self.waiting[name] for key, name in names.items() if name in self.waiting}

    def add(self, grads: Arrays) -> None:
        """Take the gradients of one layer, where the sum of a gradient is not kept already.

        The arrays are this object's from then on.
        """
        if not grads:
            return
        since = self.clock.now()
        for name, g in grads.items():
            kept = self.waiting.pop(name, None)
            if kept is not None and kept is not g:
                g += kept
        self.clock.add("gradients", "other", since)
        since = self.clock.now()
        for name, g in grads.items():
            if self.last:
                self._send(name, g)
            else:
                self.waiting[name] = g
        self.clock.add("gradients", "communication", since)

    def _send(self, name: str, g: Array) -> None:
        weight = self.weights[name]
        if not weight.bring:
            self.home[name] = g
        elif weight.summed:
            self.home[name] = g
            names = self.open.setdefault(weight.summed, [])
            names.append(name)
            if sum(self.home[n].nbytes for n in names) >= self.limit:
                self._close(weight.summed)
        else:
            self.journeys[name] = Journey(self.mesh, weight.bring, g)

    def _close(self, axes: tuple[int, ...]) -> None:
        names = self.open.pop(axes)
        group = self.mesh.group(axes)
        flat = group.xp.concatenate([group.flat(self.home[n]) for n in names])
        at = 0
        for name in names:
            g = self.home[name]
            self.home[name] = flat[at : at + g.size].reshape(g.shape)
            at += g.size
        request = group.allreduce(flat)
        self.buckets.append((names, self.mesh.underway.add(request, lambda: flat)))

    def finish(self) -> Arrays:
        """Wait for all gradients and return them by name, each lying as its parameter at home."""
        since = self.clock.now()
        for axes in list(self.open):
            self._close(axes)
        for name, journey in self.journeys.items():
            self.home[name] = journey.wait()
            pending = journey.pending
            self.clock.travelled(f"gradient of {name}", pending.began, pending.ended)
        for names, pending in self.buckets:
            pending.wait()
            self.clock.travelled(f"gradients of {names[0]} …", pending.began, pending.ended)
        self.clock.add("gradients", "communication", since)
        return self.home
