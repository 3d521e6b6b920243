"""Carry out a program's operations on one rank, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpicnn.comm.mesh import Link, Mesh
from mpicnn.comm.redistribution import redistribute
from mpicnn.division.move import SUM
from mpicnn.division.operations import (
    EXAMPLES,
    Accumulate,
    Backward,
    Call,
    Forward,
    Free,
    Loss,
    Operation,
    Receive,
    Rows,
    Send,
    Slot,
    Start,
    Store,
    Sum,
    Update,
    Wait,
)
from mpicnn.division.program import Program
from mpicnn.layers.base import Context, Tape
from mpicnn.layers.loss import PLAIN, Labels, SoftmaxCrossEntropy
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.state import Arrays, State
from mpicnn.step.timing import Mark, StepTimer


@dataclass(frozen=True)
class Tools:
    """Hold what a rank computes and communicates with."""

    mesh: Mesh
    ops: Backend
    timer: StepTimer
    seed: int
    loss: SoftmaxCrossEntropy = PLAIN


@dataclass(frozen=True)
class Batch:
    """Hold a batch: the examples that this rank reads, the labels of all, the step's number.

    `train` says whether layers behave as in training.
    """

    x: Array
    labels: Labels
    step: int = 0
    train: bool = False


@dataclass
class Totals:
    """Sum this rank's losses, and count answers that were right (top-1, top-5).

    They are copied from the device while it computes: reading them waits for these copies only.
    """

    parts: list[Callable[[], Array]] = field(default_factory=list)

    def __iadd__(self, other: Totals) -> Totals:
        self.parts += other.parts
        return self

    def read(self) -> Array:
        """Return loss, top-1 and top-5: float64 (3,)."""
        return np.sum([np.zeros(3), *(part() for part in self.parts)], axis=0)


class Interpreter:
    """Run a program's operations for one batch.

    `learn` changes parameters in place by the gradients given, where the program says so. `totals`
    and `answers`, (loss, logits), are filled meanwhile.
    """

    def __init__(
        self,
        tools: Tools,
        program: Program,
        state: State,
        batch: Batch,
        learn: Callable[[Arrays], None] | None = None,
    ) -> None:
        self.mesh, self.ops, self.timer = tools.mesh, tools.ops, tools.timer
        self.seed, self.program, self.batch, self.learn = tools.seed, program, batch, learn
        self.totals = Totals()
        self.answers: list[tuple[Loss, Array]] = []
        self.values: list[Any] = [None] * program.slots
        self.values[EXAMPLES] = batch.x
        homes = state.params | state.buffers
        for name, slot in program.homes.items():
            self.values[slot] = homes[name]
        self._loss = tools.loss.of(batch.labels) if batch.train else PLAIN
        self._mark: Mark

    def run(self, ops: Iterable[Operation]) -> None:
        """Carry out operations in order."""
        # not kept: an object that refers to itself, and all its arrays, outlive the step
        do: dict[type, Callable[[Any], None]] = {
            Start: self._start, Wait: self._wait, Forward: self._forward, Backward: self._backward,
            Loss: self._lose, Rows: self._rows, Store: self._store, Accumulate: self._accumulate,
            Sum: self._sum, Send: self._send, Receive: self._receive, Update: self._update,
            Free: self._free,
        }  # fmt: skip
        for op in ops:
            do[type(op)](op)

    def _start(self, op: Start) -> None:
        mark = self.timer.begin(op.name, "communication", op.detail)
        group = self.mesh.axes[op.hop.axis]
        x = self.values[op.x]
        self.values[op.y] = redistribute(group, op.hop.move, x, op.hop.shape)
        self.timer.end(mark)

    def _wait(self, op: Wait) -> None:
        mark = self.timer.begin(op.name, "communication", op.detail)
        pending = self.values[op.y]
        self.values[op.y] = pending.wait()
        self.timer.transferred(op.name, pending.began, pending.ended)
        self.timer.end(mark)

    def _forward(self, op: Forward) -> None:
        call = op.call
        self._mark = self.timer.begin(call.name, call.category, "forward")
        if call.idle:
            y, saved = self.ops.xp.empty(call.y_shape, self._dtype(op.x[0])), None
        else:
            context = self._context(call, "x" if op.over else "")
            x = self._inputs(call, op.x)
            y, saved = call.layer.forward(self.ops, x, self._here(op.use), context)
        self.values[op.y] = y
        if op.saved is not None:
            self.values[op.saved] = saved
        self.timer.end(self._mark)
        self._poll()

    def _backward(self, op: Backward) -> None:
        call, values = op.call, self.values
        self._mark = self.timer.begin(call.name, call.category, "backward")
        dy, p = values[op.dy], self._here(op.use)
        before = {s: values[g] for s, g in op.grads.items() if values[g] is not None}
        if call.idle:
            grads = {short: self.ops.xp.zeros_like(p[short]) for short in op.grads}
            found: Any = [self.ops.xp.empty(shape, dy.dtype) for shape in call.x_shapes]
        else:
            context = self._context(call, "dy" if op.over else "")
            context.sums = before
            x = self._inputs(call, op.x) if op.x else None
            tape = Tape(x, None if op.y is None else values[op.y], values[op.saved])
            found, grads = call.layer.backward(self.ops, dy, tape, p, context)
            found = found if call.layer.joins else [found]
        for slot, dx in zip(op.dx, found or (), strict=False):
            if slot is not None:
                values[slot] = dx
        self.timer.end(self._mark)
        mark = self.timer.begin("gradients", "other")
        for short, slot in op.grads.items():
            kept, g = before.get(short), grads[short]
            if kept is not None and kept is not g:
                g += kept
            values[slot] = g
        self.timer.end(mark)
        self._poll()

    def _lose(self, op: Loss) -> None:
        logits = self.values[op.x]
        if op.dx is None:
            self.answers.append((op, logits))
            return
        mark = self.timer.begin("loss", "other")
        some, saved = self.lose(op, logits)
        self.totals += some
        self.values[op.dx] = self._loss.backward(self.ops, saved, self.program.count)
        self.timer.end(mark)

    def lose(self, op: Loss, logits: Array) -> tuple[Totals, Any]:
        """Return the totals of some answers, and what their gradient is made of."""
        sums, saved = self._loss.forward(self.ops, logits, self.batch.labels[op.labels])
        return Totals([self.ops.fetch(sums)]), saved

    def _rows(self, op: Rows) -> None:
        y = self.values[op.x][op.rows]
        self.values[op.y] = y if len(y) else y.copy()  # a view of nothing would keep all of x

    def _store(self, op: Store) -> None:
        x = self.values[op.x]
        if self.values[op.y] is None:
            self.values[op.y] = self.ops.xp.zeros(op.shape, x.dtype)
        self.values[op.y][op.rows] = x

    def _accumulate(self, op: Accumulate) -> None:
        mark = self.timer.begin("gradients", "other")
        to, x = self.values[op.to], self.values[op.x]
        over = None if op.over is None else self.values[op.over]
        self.values[op.y] = self.ops.xp.add(to, x, out=over)
        self.timer.end(mark)

    def _sum(self, op: Sum) -> None:
        mark = self.timer.begin("gradients", "communication", "sum over the ranks")
        group, values = self.mesh.group(op.axes), self.values
        flat = group.xp.concatenate([group.flat(values[slot]) for slot in op.x])
        at = 0
        for slot in op.x:
            g = values[slot]
            values[slot] = flat[at : at + g.size].reshape(g.shape)
            at += g.size
        values[op.y] = self.mesh.engine.add(group.allreduce(flat), lambda: flat)
        self.timer.end(mark)

    def _send(self, op: Send) -> None:
        mark = self.timer.begin(op.name, "communication", op.detail)
        self.values[op.y] = self._link(op.back).send(self.values[op.x], op.number)
        self.timer.end(mark)

    def _receive(self, op: Receive) -> None:
        mark = self.timer.begin(op.name, "communication", op.detail)
        link = self._link(not op.back)
        self.values[op.y] = link.receive(op.shape, self.batch.x.dtype, op.number)
        self.timer.end(mark)

    def _link(self, before: bool) -> Link:
        link = self.mesh.before if before else self.mesh.behind
        assert link is not None
        return link

    def _update(self, op: Update) -> None:
        assert self.learn is not None
        self.learn({name: self.values[slot] * op.scale for name, slot in op.grads.items()})

    def _free(self, op: Free) -> None:
        for slot in op.slots:
            self.values[slot] = None

    def _inputs(self, call: Call, slots: tuple[Slot, ...]) -> Any:
        return [self.values[slot] for slot in slots] if call.layer.joins else self.values[slots[0]]

    def _here(self, use: Any) -> Arrays:
        return {short: self.values[slot] for short, slot in use.items()}

    def _dtype(self, slot: Slot) -> Any:
        return self.values[slot].dtype

    def _context(self, call: Call, *over: str) -> Context:
        return Context(
            train=self.batch.train and not call.frozen,
            step=self.batch.step,
            seed=self.seed,
            layer=call.number,
            count=call.together,
            positions=call.positions,
            channels=call.channels,
            need_dx=call.need_dx,
            need_dw=not call.frozen,
            batch_sum=lambda partial: self._batch_sum(call, partial),
            joined=call.joined,
            over=frozenset(over),
        )

    def _batch_sum(self, call: Call, partial: Array) -> Array:
        """Return a sum over the ranks of a batch; the layer's own time is interrupted meanwhile."""
        if not call.sum_axes:
            return partial
        self.timer.end(self._mark)
        mark = self.timer.begin(call.name, "communication", "sum over the batch")
        for axis in call.sum_axes:
            group = self.mesh.axes[axis]
            partial = redistribute(group, SUM, partial, partial.shape).wait()
        self.timer.end(mark)
        self._mark = self.timer.begin(call.name, call.category)
        return partial

    def _poll(self) -> None:
        """Let MPI make progress with what travels beside the computation."""
        if self.mesh.engine.busy:
            mark = self.timer.begin("progress", "communication")
            self.mesh.engine.poll()
            self.timer.end(mark)
