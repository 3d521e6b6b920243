"""Carry a batch forward and backward through the steps of a chain, on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from mpicnn.clock import Clock
from mpicnn.layers.base import Run
from mpicnn.mesh import Mesh
from mpicnn.move import SUM
from mpicnn.program import Chain, Compute, Redistribute, Transfer
from mpicnn.redistribution import redistribute
from mpicnn.traffic import Homecoming, Weights
from mpicnn.underway import Pending

Array = NDArray[Any]


@dataclass
class Passing:
    """A chain on its way forward or backward: the value at step `at`, and what was saved.

    `pending` is the value on its way to other ranks or from them, where that was started and not
    yet waited for.
    """

    chain: Chain
    value: Array
    at: int = 0
    tape: list[Any] = field(default_factory=list)
    pending: Pending | None = None


@dataclass
class Walk:
    """What all chains of one batch need on their way.

    `home` takes the gradients; None where nothing is learnt.
    """

    mesh: Mesh
    ops: ModuleType
    clock: Clock
    seed: int
    weights: Weights
    count: int
    step: int = 0
    home: Homecoming | None = None
    flying: list[Pending] = field(default_factory=list)

    def forward(self, way: Passing, to_feed: bool = False) -> None:
        """Go forward to the chain's end, or only until its first redistribution has started."""
        steps = way.chain.steps
        while way.at < len(steps):
            item = steps[way.at]
            if isinstance(item, Compute):
                way.tape.append(self._layer_forward(item, way))
            else:
                if way.pending is None:
                    self._start(way, item, forward=True)
                    if to_feed:
                        return
                self._end(way, item)
                way.tape.append(None)
            way.at += 1

    def backward(self, way: Passing, stop: int, to_feed: bool = False) -> None:
        """Go back to step `stop`, or only until the first redistribution's way back has started."""
        feed = next((i for i, s in enumerate(way.chain.steps) if isinstance(s, Redistribute)), -1)
        while way.at > stop:
            at = way.at - 1
            item = way.chain.steps[at]
            if isinstance(item, Compute):
                self._layer_backward(item, way)
            else:
                if way.pending is None:
                    self._start(way, item, forward=False)
                    if to_feed and at == feed:
                        return
                self._end(way, item)
            way.at = at

    def expect(self, ways: Sequence[Passing], turns: Sequence[tuple[str, int]]) -> None:
        """Begin to receive what another stage sends for these turns, as far as they can begin."""
        for direction, index in turns:
            way, forward = ways[index], direction == "F"
            steps = way.chain.steps if forward or way.chain.back_to < way.at else ()
            item = steps[0 if forward else -1] if steps else None
            if isinstance(item, Transfer) and item.out != forward:
                self._start(way, item, forward)

    def settle(self) -> None:
        """Wait until everything that other stages were sent has left."""
        since = self.clock.now()
        for pending in self.flying:
            if not pending.poll():
                pending.wait()
        self.flying.clear()
        self.clock.add("stages", "communication", since)

    def _start(self, way: Passing, item: Redistribute | Transfer, forward: bool) -> None:
        since = self.clock.now()
        if isinstance(item, Transfer):
            way.pending = self._transfer(way.value, item, forward)
        else:
            group = self.mesh.axes[item.hop.axis]
            move = item.hop.move if forward else item.hop.move.adjoint
            way.pending = redistribute(group, move, way.value, item.hop.shape)
        self.clock.add(item.name, "communication", since)

    def _transfer(self, value: Array, item: Transfer, forward: bool) -> Pending:
        """Begin to send `value` to another stage, or to receive what is to take its place."""
        link = self.mesh.behind if item.out else self.mesh.before
        assert link is not None
        if item.out != forward:
            pending = link.receive(item.shape, value.dtype)
            self.flying.append(pending)
            return pending
        self.flying.append(link.send(value))
        return Pending.done(value[:0])

    def _end(self, way: Passing, item: Redistribute | Transfer) -> None:
        since = self.clock.now()
        assert way.pending is not None
        way.value = way.pending.wait()
        self.clock.travelled(item.name, way.pending.began, way.pending.ended)
        way.pending = None
        self.clock.add(item.name, "communication", since)

    def _poll(self) -> None:
        """Let MPI make progress with what travels beside the computation."""
        if not (self.flying or self.mesh.underway.busy):
            return
        since = self.clock.now()
        self.mesh.underway.poll()
        self.flying = [pending for pending in self.flying if not pending.poll()]
        self.clock.add("progress", "communication", since)

    def _layer_forward(self, item: Compute, way: Passing) -> Any:
        """Run a layer on the way's value; return what its backward pass needs."""
        p = self.weights.of(item)
        since = self.clock.now()
        saved = None
        if item.idle:
            way.value = self.ops.xp.empty(item.y_shape, way.value.dtype)
        else:
            run = self._run(item, need_dx=True)
            way.value, saved = item.layer.forward(self.ops, way.value, p, run)
        self.clock.add(item.name, item.kind, since)
        self._poll()
        return saved

    def _layer_backward(self, item: Compute, way: Passing) -> None:
        """Run a layer backward on the way's value and send its gradients home."""
        p = self.weights.of(item)
        since = self.clock.now()
        dx: Array | None
        if item.idle:
            learnt = {s: a for s, a in p.items() if item.weights[s] not in self.weights.buffers}
            grads = {short: self.ops.xp.zeros_like(a) for short, a in learnt.items()}
            dx = self.ops.xp.empty(item.x_shape, way.value.dtype)
        else:
            assert self.home is not None
            run = self._run(item, need_dx=not item.first)
            run.sums = self.home.sums(item.weights)
            dx, grads = item.layer.backward(self.ops, way.value, way.tape[way.at - 1], p, run)
        way.tape[way.at - 1] = None
        if dx is not None:
            way.value = dx
        self.clock.add(item.name, item.kind, since)
        assert self.home is not None
        self.home.add({item.weights[short]: g for short, g in grads.items()})
        self._poll()

    def _run(self, item: Compute, need_dx: bool) -> Run:
        return Run(
            train=self.home is not None,
            step=self.step,
            seed=self.seed,
            layer=item.index,
            count=self.count,
            positions=item.positions,
            channels=item.channels,
            need_dx=need_dx,
            batch_sum=lambda partial: self._sum(item, partial),
            joined=item.joined,
        )

    def _sum(self, item: Compute, partial: Array) -> Array:
        for axis in item.sum_axes:
            group = self.mesh.axes[axis]
            partial = redistribute(group, SUM, partial, partial.shape).wait()
        return partial
