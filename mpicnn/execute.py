"""Carry out a program on one rank: forward, backward, and the gradients' way home."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.layers.base import Run
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.mesh import Mesh, Pending
from mpicnn.move import SUM, Move
from mpicnn.program import Chain, Compute, Hop, Program, Redistribute, Round, Weight
from mpicnn.state import Arrays, State

Array = NDArray[Any]


class Clock:
    """Seconds spent, by kind ("communication", "convolution", "other") and by step name."""

    def __init__(self) -> None:
        self.by_kind = {"communication": 0.0, "convolution": 0.0, "other": 0.0}
        self.by_name: dict[str, float] = {}

    def add(self, name: str, kind: str, since: float) -> None:
        """Book the seconds from `since` (of `perf_counter`) until now."""
        seconds = perf_counter() - since
        self.by_kind[kind] += seconds
        self.by_name[name] = self.by_name.get(name, 0.0) + seconds


@dataclass
class Totals:
    """Sums over this rank's examples: loss, and how many were right at once and within five."""

    loss: float = 0.0
    top1: int = 0
    top5: int = 0

    def __iadd__(self, other: Totals) -> Totals:
        self.loss += other.loss
        self.top1 += other.top1
        self.top5 += other.top5
        return self


class Executor:
    """Run programs on one rank's mesh and backend.

    `bucket` is the number of bytes of gradient that are summed together: large enough to pay for
    a collective, small enough that the first one starts early.
    """

    def __init__(self, mesh: Mesh, ops: ModuleType, seed: int, bucket: int = 4 << 20) -> None:
        self.mesh = mesh
        self.ops = ops
        self.seed = seed
        self.bucket = bucket
        self.clock = Clock()
        self._loss = SoftmaxCrossEntropy()

    def train(
        self, program: Program, state: State, x: Array, labels: Array, step: int
    ) -> tuple[Arrays, Totals]:
        """Return the gradients of the batch's mean loss, home, and this rank's share of the totals.

        `x` holds the examples at `program.positions`, `labels` those of the whole batch. All
        ranks of the mesh must call together.
        """
        weights = self._fetch(program.weights, state)
        home = _Homecoming(self, program.weights)
        y, tape = self._forward(program.body, x, weights, program.count, step, train=True)
        whole = program.rounds[0].rows == slice(0, y.shape[0]) and len(program.rounds) == 1
        dy = y if whole else self.ops.xp.zeros_like(y)
        need_dx = program.body.back_to < len(program.body.steps)
        totals = Totals()
        for number, part in enumerate(program.rounds, start=1):
            home.last = number == len(program.rounds)
            d, part_totals = self._round(program, part, weights, y, labels, step, home, need_dx)
            totals += part_totals
            if whole:
                dy = d
            elif need_dx:
                dy[part.rows] = d
        self._backward(program.body, dy, tape, weights, program.count, step, home, False)
        return home.finish(), totals

    def evaluate(self, program: Program, state: State, x: Array, labels: Array) -> Totals:
        """Return this rank's share of the totals of a batch, without dropout or any change."""
        weights = self._fetch(program.weights, state)
        y, _ = self._forward(program.body, x, weights, program.count, 0, train=False)
        totals = Totals()
        for part in program.rounds:
            logits, _ = self._forward(
                part.chain, y[part.rows], weights, program.count, 0, train=False
            )
            totals += self._lose(logits, labels[part.labels])[0]
        return totals

    def predict(self, program: Program, state: State, x: Array) -> Array:
        """Return the logits that lie on this rank, in the order of its rounds."""
        weights = self._fetch(program.weights, state)
        y, _ = self._forward(program.body, x, weights, program.count, 0, train=False)
        logits = [
            self._forward(part.chain, y[part.rows], weights, program.count, 0, train=False)[0]
            for part in program.rounds
        ]
        return np.concatenate(logits)

    def _round(
        self, program: Program, part: Round, weights: _Weights,
        y: Array, labels: Array, step: int, home: _Homecoming, need_dx: bool,
    ) -> tuple[Array, Totals]:  # fmt: skip
        chain = part.chain
        logits, tape = self._forward(chain, y[part.rows], weights, program.count, step, train=True)
        since = perf_counter()
        totals, saved = self._lose(logits, labels[part.labels])
        dlogits = self._loss.backward(self.ops, saved, program.count)
        self.clock.add("loss", "other", since)
        d = self._backward(chain, dlogits, tape, weights, program.count, step, home, need_dx)
        return d, totals

    def _lose(self, logits: Array, labels: Array) -> tuple[Totals, Any]:
        loss, top1, top5, saved = self._loss.forward(self.ops, logits, labels)
        return Totals(loss, top1, top5), saved

    def _forward(
        self, chain: Chain, x: Array, weights: _Weights, count: int, step: int, train: bool
    ) -> tuple[Array, list[Any]]:
        tape: list[Any] = []
        for item in chain.steps:
            since = perf_counter()
            if isinstance(item, Redistribute):
                x = self._hop(item.hop, item.hop.move, x)
                tape.append(None)
                self.clock.add(item.name, "communication", since)
                continue
            p = weights.of(item)
            since = perf_counter()
            if item.idle:
                x, saved = self.ops.xp.empty(item.y_shape, x.dtype), None
            else:
                run = self._run(item, count, step, train, need_dx=True)
                x, saved = item.layer.forward(self.ops, x, p, run)
            tape.append(saved)
            self.clock.add(item.name, item.kind, since)
        return x, tape

    def _backward(
        self, chain: Chain, dy: Array, tape: list[Any], weights: _Weights, count: int, step: int,
        home: _Homecoming, need_dx: bool,
    ) -> Array:  # fmt: skip
        stop = 0 if need_dx else chain.back_to
        for at in range(len(chain.steps) - 1, stop - 1, -1):
            item = chain.steps[at]
            since = perf_counter()
            if isinstance(item, Redistribute):
                dy = self._hop(item.hop, item.hop.move.adjoint, dy)
                self.clock.add(item.name, "communication", since)
                continue
            dx, grads = self._layer_backward(item, dy, tape[at], weights, count, step)
            tape[at] = None
            self.clock.add(item.name, item.kind, since)
            home.add({item.weights[short]: g for short, g in grads.items()})
            if dx is not None:
                dy = dx
        return dy

    def _layer_backward(
        self, item: Compute, dy: Array, saved: Any, weights: _Weights, count: int, step: int
    ) -> tuple[Array | None, Arrays]:
        p = weights.of(item)
        if not item.idle:
            run = self._run(item, count, step, train=True, need_dx=not item.first)
            return item.layer.backward(self.ops, dy, saved, p, run)
        trained = {s: a for s, a in p.items() if item.weights[s] not in weights.buffers}
        zeros = {short: self.ops.xp.zeros_like(a) for short, a in trained.items()}
        return self.ops.xp.empty(item.x_shape, dy.dtype), zeros

    def _run(self, item: Compute, count: int, step: int, train: bool, need_dx: bool) -> Run:
        return Run(
            train=train, step=step, seed=self.seed, layer=item.index, count=count,
            positions=item.positions, channels=item.channels, need_dx=need_dx,
            batch_sum=lambda partial: self._sum(item, partial),
        )  # fmt: skip

    def _sum(self, item: Compute, partial: Array) -> Array:
        for axis in item.sum_axes:
            partial = SUM(self.mesh.axes[axis], partial, partial.shape)
        return partial

    def _hop(self, hop: Hop, move: Move, x: Array) -> Array:
        return move(self.mesh.axes[hop.axis], x, hop.shape)

    def _fetch(self, weights: Iterable[Weight], state: State) -> _Weights:
        return _Weights(self, weights, state)


class _Weights:
    """The parameters as layers compute with them; those that live elsewhere set out at once."""

    def __init__(self, executor: Executor, weights: Iterable[Weight], state: State) -> None:
        self.clock = executor.clock
        self.buffers = state.buffers
        self.here: Arrays = {}
        self.travelling: dict[str, _Journey] = {}
        for weight in weights:
            value = (state.buffers if weight.buffer else state.params)[weight.name]
            if weight.fetch:
                self.travelling[weight.name] = _Journey(executor.mesh, weight.fetch, value)
            else:
                self.here[weight.name] = value

    def of(self, item: Compute) -> Arrays:
        """Return a layer's parameters and buffers by their short names, waiting where needed."""
        for name in item.weights.values():
            if name in self.travelling:
                since = perf_counter()
                self.here[name] = self.travelling.pop(name).wait()
                self.clock.add(item.name, "communication", since)
        return {short: self.here[name] for short, name in item.weights.items()}


class _Journey:
    """A tensor on its way over one or more hops."""

    def __init__(self, mesh: Mesh, hops: tuple[Hop, ...], x: Array) -> None:
        self.mesh = mesh
        self.hops = hops
        self.pending = self._start(0, x)

    def _start(self, at: int, x: Array) -> Pending:
        hop = self.hops[at]
        return hop.move.start(self.mesh.axes[hop.axis], x, hop.shape)

    def poll(self) -> bool:
        return self.pending.poll()

    def wait(self) -> Array:
        x = self.pending.wait()
        for at in range(1, len(self.hops)):
            x = self._start(at, x).wait()
        return x


class _Homecoming:
    """Bring gradients home as soon as they exist, while the backward pass goes on.

    Gradients that need a plain sum over the same ranks share a bucket, closed when it is full;
    the others travel one by one. All ranks add in the same order, so that their collectives match.
    Until `last` is set, gradients of the head's rounds are kept and summed.
    """

    def __init__(self, executor: Executor, weights: Iterable[Weight]) -> None:
        self.mesh = executor.mesh
        self.clock = executor.clock
        self.limit = executor.bucket
        self.weights = {w.name: w for w in weights if not w.buffer}
        self.last = True
        self.waiting: Arrays = {}
        self.home: Arrays = {}
        self.open: dict[tuple[int, ...], list[str]] = {}
        self.journeys: dict[str, _Journey] = {}
        self.buckets: list[tuple[list[str], Pending]] = []

    def add(self, grads: Arrays) -> None:
        """Take the gradients of one layer."""
        since = perf_counter()
        for name, g in grads.items():
            if name in self.waiting:
                g = self.waiting.pop(name) + g
            if self.last:
                self._send(name, g)
            else:
                self.waiting[name] = g
        for pending in [p for _, p in self.buckets] + [j.pending for j in self.journeys.values()]:
            pending.poll()
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
            self.journeys[name] = _Journey(self.mesh, weight.bring, g)

    def _close(self, axes: tuple[int, ...]) -> None:
        names = self.open.pop(axes)
        flat = np.concatenate([self.home[n].reshape(-1) for n in names])
        self.buckets.append((names, SUM.start(self.mesh.group(axes), flat, flat.shape)))

    def finish(self) -> Arrays:
        """Wait for all gradients and return them by name, each lying as its parameter at home."""
        since = perf_counter()
        for axes in list(self.open):
            self._close(axes)
        for name, journey in self.journeys.items():
            self.home[name] = journey.wait()
        for names, pending in self.buckets:
            flat = pending.wait()
            at = 0
            for name in names:
                g = self.home[name]
                self.home[name] = flat[at : at + g.size].reshape(g.shape)
                at += g.size
        self.clock.add("gradients", "communication", since)
        return self.home
