"""Carry out a program on one rank: forward, backward, and what travels meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.clock import Clock
from mpicnn.layers.base import Run
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.mesh import Mesh, Pending
from mpicnn.move import SUM
from mpicnn.program import Chain, Compute, MicroBatch, Program, Redistribute, Round, Transfer
from mpicnn.state import Arrays, State
from mpicnn.traffic import Homecoming, Weights

Array = NDArray[Any]


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


@dataclass
class Batch:
    """What all the steps of one batch need; `home` is None where nothing is learnt."""

    weights: Weights
    count: int
    step: int
    home: Homecoming | None = None


@dataclass
class Passing:
    """A chain on its way forward or backward: the value at step `at`, and what was saved.

    `pending` is the value on its way to other ranks or from them, where that was started and not
    yet waited for.
    """

    chain: Chain
    value: Array
    at: int
    tape: list[Any]
    pending: Pending | None = None


class Executor:
    """Run programs on one rank's mesh and backend.

    `bucket` is the number of bytes of gradient that are summed together: large enough to pay for
    a collective, small enough that the first one starts early. Without `overlap`, every
    redistribution of the head is waited for at once; results are the same.
    """

    def __init__(
        self,
        mesh: Mesh,
        ops: ModuleType,
        seed: int,
        bucket: int = 4 << 20,
        overlap: bool = True,
    ) -> None:
        self.mesh = mesh
        self.ops = ops
        self.seed = seed
        self.bucket = bucket
        self.overlap = overlap
        self.clock = Clock()
        self._loss = SoftmaxCrossEntropy()
        self._flying: list[Pending] = []

    def train(
        self,
        program: Program,
        state: State,
        x: Array,
        labels: Array,
        step: int,
        learn: Callable[[Arrays], None] | None = None,
    ) -> tuple[Arrays, Totals]:
        """Return the gradients of the batch's mean loss, home, and this rank's share of the totals.

        `x` holds the examples at `program.positions`, `labels` those of the whole batch. With
        `learn`, the head's gradients are not returned but passed to it after every round, of the
        mean loss of that round's examples, for it to change the head's parameters in place (OWT's
        variable batch size). All ranks of the mesh must call together.
        """
        home = Homecoming(self.mesh, self.clock, program.weights, self.bucket)
        weights = Weights(self.mesh, self.clock, program.weights, state)
        batch = Batch(weights, program.count, step, home)
        totals = Totals()
        ways = self._ways(program, x)
        self._expect(ways, program.order[:1])
        for at, (direction, index) in enumerate(program.order):
            self._expect(ways, program.order[at + 1 : at + 2])
            way, micro = ways[index], program.micro_batches[index]
            if direction == "F":
                self._forward(way, batch)
                continue
            final = at + 1 == len(program.order)
            if micro.rounds:
                totals += self._head(program, micro, way, batch, labels, final, learn)
            assert batch.home is not None
            batch.home.last = final
            self._backward(way, batch, micro.body.back_to)
            way.value = x[:0]
        assert batch.home is not None
        grads = batch.home.finish()
        self._settle()
        return grads, totals

    def evaluate(self, program: Program, state: State, x: Array, labels: Array) -> Totals:
        """Return this rank's share of the totals of a batch, without dropout or any change."""
        totals = Totals()
        for part, logits in self._answers(program, state, x):
            totals += self._lose(logits, labels[part.labels])[0]
        return totals

    def predict(self, program: Program, state: State, x: Array) -> Array:
        """Return the logits of the examples at `program.answers`, one row each."""
        answers = [logits for _, logits in self._answers(program, state, x)]
        return np.concatenate(answers) if answers else np.zeros((0, 0), x.dtype)

    def _answers(self, program: Program, state: State, x: Array) -> list[tuple[Round, Array]]:
        weights = Weights(self.mesh, self.clock, program.weights, state)
        batch = Batch(weights, program.count, step=0)
        answers = []
        for micro, way in zip(program.micro_batches, self._ways(program, x), strict=True):
            self._forward(way, batch)
            for part in micro.rounds:
                head = Passing(part.chain, way.value[part.rows], 0, [])
                self._forward(head, batch)
                answers.append((part, head.value))
            way.tape.clear()
        self._settle()
        return answers

    def _ways(self, program: Program, x: Array) -> list[Passing]:
        return [Passing(micro.body, x[micro.rows], 0, []) for micro in program.micro_batches]

    def _expect(self, ways: Sequence[Passing], turns: Sequence[tuple[str, int]]) -> None:
        """Begin to receive what another stage sends for these turns, as far as they can begin."""
        for direction, index in turns:
            way, forward = ways[index], direction == "F"
            steps = way.chain.steps if forward or way.chain.back_to < way.at else ()
            item = steps[0 if forward else -1] if steps else None
            if isinstance(item, Transfer) and item.out != forward:
                self._start(way, item, forward)

    def _settle(self) -> None:
        """Wait until everything that other stages were sent has left."""
        since = perf_counter()
        for pending in self._flying:
            if not pending.poll():
                pending.wait()
        self._flying.clear()
        self.clock.add("stages", "communication", since)

    def _head(
        self,
        program: Program,
        micro: MicroBatch,
        way: Passing,
        batch: Batch,
        labels: Array,
        final: bool,
        learn: Callable[[Arrays], None] | None,
    ) -> Totals:
        """Run a micro-batch's rounds forward and backward; return the totals.

        The gradient of the body's output takes its place on the way, unless nothing wants it.
        While a round computes, the next one's feed and the last one's gradient travel (OWT). With
        `final`, gradients set out in the last round.
        """
        home = batch.home
        assert home is not None
        totals = Totals()
        y = way.value
        dy = self.ops.xp.zeros_like(y)
        stop = 0 if micro.learns else None
        heads = [Passing(part.chain, y[part.rows], 0, []) for part in micro.rounds]
        returning: tuple[Round, Passing] | None = None
        self._forward(heads[0], batch, to_feed=True)
        for number, (part, head) in enumerate(zip(micro.rounds, heads, strict=True)):
            if self.overlap and number + 1 < len(heads):
                self._forward(heads[number + 1], batch, to_feed=True)
            self._forward(head, batch)
            since = perf_counter()
            some, saved = self._lose(head.value, labels[part.labels])
            totals += some
            head.value = self._loss.backward(self.ops, saved, program.count)
            self.clock.add("loss", "other", since)
            home.last = learn is not None or (final and number + 1 == len(heads))
            self._backward(head, batch, part.chain.back_to if stop is None else stop, self.overlap)
            if learn is not None:
                grads = home.finish()
                learn({name: g * (program.count / part.count) for name, g in grads.items()})
                batch.weights.renew(grads)
                home = Homecoming(self.mesh, self.clock, program.weights, self.bucket)
                batch.home = home
            if returning is not None:
                self._land(*returning, batch, stop, dy)
            returning = (part, head)
        assert returning is not None
        self._land(*returning, batch, stop, dy)
        way.value = dy
        return totals

    def _land(self, part: Round, head: Passing, batch: Batch, stop: int | None, dy: Array) -> None:
        """End a round's way back and put its gradient where the body's output lay."""
        self._backward(head, batch, part.chain.back_to if stop is None else stop)
        if stop is not None:
            dy[part.rows] = head.value

    def _lose(self, logits: Array, labels: Array) -> tuple[Totals, Any]:
        loss, top1, top5, saved = self._loss.forward(self.ops, logits, labels)
        return Totals(loss, top1, top5), saved

    def _forward(self, way: Passing, batch: Batch, to_feed: bool = False) -> None:
        """Go forward to the chain's end, or only until its first redistribution has started."""
        steps = way.chain.steps
        while way.at < len(steps):
            item = steps[way.at]
            if not isinstance(item, Compute):
                if way.pending is None:
                    self._start(way, item, forward=True, flying=to_feed)
                    if to_feed:
                        return
                self._end(way, item)
                way.tape.append(None)
            else:
                p = batch.weights.of(item)
                since = perf_counter()
                saved = None
                if item.idle:
                    way.value = self.ops.xp.empty(item.y_shape, way.value.dtype)
                else:
                    run = self._run(item, batch, need_dx=True)
                    way.value, saved = item.layer.forward(self.ops, way.value, p, run)
                way.tape.append(saved)
                self.clock.add(item.name, item.kind, since)
                self._poll(batch)
            way.at += 1

    def _backward(self, way: Passing, batch: Batch, stop: int, to_feed: bool = False) -> None:
        """Go back to step `stop`, or only until the first redistribution's way back has started."""
        feed = next((i for i, s in enumerate(way.chain.steps) if isinstance(s, Redistribute)), -1)
        while way.at > stop:
            at = way.at - 1
            item = way.chain.steps[at]
            if not isinstance(item, Compute):
                if way.pending is None:
                    self._start(way, item, forward=False, flying=to_feed)
                    if to_feed and at == feed:
                        return
                self._end(way, item)
            else:
                since = perf_counter()
                dx, grads = self._layer_backward(item, way.value, way.tape[at], batch)
                way.tape[at] = None
                self.clock.add(item.name, item.kind, since)
                if dx is not None:
                    way.value = dx
                assert batch.home is not None
                batch.home.add({item.weights[short]: g for short, g in grads.items()})
                self._poll(batch)
            way.at = at

    def _start(
        self, way: Passing, item: Redistribute | Transfer, forward: bool, flying: bool = False
    ) -> None:
        since = perf_counter()
        if isinstance(item, Transfer):
            way.pending = self._transfer(way.value, item, forward)
        else:
            group = self.mesh.axes[item.hop.axis]
            move = item.hop.move if forward else item.hop.move.adjoint
            way.pending = move.start(group, way.value, item.hop.shape)
        if flying:
            self._flying.append(way.pending)
        self.clock.add(item.name, "communication", since)

    def _transfer(self, value: Array, item: Transfer, forward: bool) -> Pending:
        """Begin to send `value` to another stage, or to receive what is to take its place."""
        link = self.mesh.behind if item.out else self.mesh.before
        assert link is not None
        if item.out != forward:
            pending = link.receive(item.shape, value.dtype)
            self._flying.append(pending)
            return pending
        self._flying.append(link.send(value))
        return Pending.done(value[:0])

    def _end(self, way: Passing, item: Redistribute | Transfer) -> None:
        since = perf_counter()
        assert way.pending is not None
        way.value = way.pending.wait()
        self.clock.travelled(item.name, way.pending.began, way.pending.ended)
        way.pending = None
        self.clock.add(item.name, "communication", since)

    def _poll(self, batch: Batch) -> None:
        """Let MPI make progress with what travels beside the computation."""
        since = perf_counter()
        self._flying = [pending for pending in self._flying if not pending.poll()]
        batch.weights.poll()
        if batch.home is not None:
            batch.home.poll()
        self.clock.add("progress", "communication", since)

    def _layer_backward(
        self, item: Compute, dy: Array, saved: Any, batch: Batch
    ) -> tuple[Array | None, Arrays]:
        p = batch.weights.of(item)
        if not item.idle:
            run = self._run(item, batch, need_dx=not item.first)
            return item.layer.backward(self.ops, dy, saved, p, run)
        learnt = {s: a for s, a in p.items() if item.weights[s] not in batch.weights.buffers}
        zeros = {short: self.ops.xp.zeros_like(a) for short, a in learnt.items()}
        return self.ops.xp.empty(item.x_shape, dy.dtype), zeros

    def _run(self, item: Compute, batch: Batch, need_dx: bool) -> Run:
        return Run(
            train=batch.home is not None,
            step=batch.step,
            seed=self.seed,
            layer=item.index,
            count=batch.count,
            positions=item.positions,
            channels=item.channels,
            need_dx=need_dx,
            batch_sum=lambda partial: self._sum(item, partial),
        )

    def _sum(self, item: Compute, partial: Array) -> Array:
        for axis in item.sum_axes:
            partial = SUM(self.mesh.axes[axis], partial, partial.shape)
        return partial
