"""Bring gradients home while the backward pass goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import Pending
from mpicnn.comm.redistribution import Redistribution
from mpicnn.division.program import WeightLayout
from mpicnn.ops.interface import Array
from mpicnn.step.state import Arrays
from mpicnn.step.timing import StepTimer


class GradientReducer:
    """Bring gradients home as soon as they exist, while the backward pass goes on.

    Gradients that need a plain sum over the same ranks share a bucket, closed when it is full;
    the others travel one by one. All ranks add in the same order, so that their collectives match.
    Until `last` is set, gradients of the head's rounds are kept and summed.
    """

    def __init__(
        self, mesh: Mesh, timer: StepTimer, weights: Iterable[WeightLayout], bucket: int
    ) -> None:
        self.mesh = mesh
        self.timer = timer
        self.limit = bucket
        self.weights = {w.name: w for w in weights if not w.buffer}
        self.last = True
        self.waiting: Arrays = {}
        self.home: Arrays = {}
        self.open: dict[tuple[int, ...], list[str]] = {}
        self.redistributions: dict[str, Redistribution] = {}
        self.buckets: list[tuple[list[str], Pending]] = []

    def another(self) -> GradientReducer:
        """Return one for the next gradients of the same parameters."""
        return GradientReducer(self.mesh, self.timer, self.weights.values(), self.limit)

    def sums(self, names: Mapping[str, str]) -> Arrays:
        """Return the gradients accumulated so far of these parameters, by the keys of `names`."""
        return {key: self.waiting[name] for key, name in names.items() if name in self.waiting}

    def add(self, grads: Arrays) -> None:
        """Accumulate the gradients of one layer; send those home that are complete.

        The arrays are this object's from then on.
        """
        if not grads:
            return
        adding = self.timer.begin("gradients", "other")
        for name, g in grads.items():
            kept = self.waiting.pop(name, None)
            if kept is not None and kept is not g:
                g += kept
        self.timer.end(adding)
        sending = self.timer.begin("gradients", "communication")
        for name, g in grads.items():
            if self.last:
                self._send(name, g)
            else:
                self.waiting[name] = g
        self.timer.end(sending)

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
            self.redistributions[name] = Redistribution(self.mesh, weight.bring, g)

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
        self.buckets.append((names, self.mesh.engine.add(request, lambda: flat)))

    def finish(self) -> Arrays:
        """Wait for all gradients and return them by name, each lying as its parameter at home."""
        waiting = self.timer.begin("gradients", "communication", "sum over the ranks")
        for axes in list(self.open):
            self._close(axes)
        for name, redistribution in self.redistributions.items():
            self.home[name] = redistribution.wait()
            pending = redistribution.pending
            self.timer.transferred(f"gradient of {name}", pending.began, pending.ended)
        for names, pending in self.buckets:
            pending.wait()
            self.timer.transferred(f"gradients of {names[0]} …", pending.began, pending.ended)
        self.timer.end(waiting)
        return self.home
