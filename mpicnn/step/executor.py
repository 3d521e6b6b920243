"""Carry out a program on one rank: forward, backward, and what travels meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpicnn.comm.mesh import Mesh
from mpicnn.division.program import MicroBatch, Program, Round
from mpicnn.job.activity import Activity
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.gradients import GradientReducer
from mpicnn.step.interpreter import Cursor, Interpreter
from mpicnn.step.optimiser import Optimiser
from mpicnn.step.state import Arrays, State
from mpicnn.step.timing import StepTimer
from mpicnn.step.weights import FetchedWeights


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


class Executor:
    """Run programs on one rank's mesh and backend.

    `bucket` is the number of bytes of gradient that are summed together: large enough to pay for
    a collective, small enough that the first one starts early. `activity` is told what is done.
    """

    def __init__(
        self,
        mesh: Mesh,
        ops: Backend,
        seed: int,
        bucket: int = 1 << 20,
        activity: Activity | None = None,
    ) -> None:
        self.mesh = mesh
        self.ops = ops
        self.seed = seed
        self.bucket = bucket
        self.activity = activity or Activity()
        self.device_timer = ops.Timer()
        self.timer = StepTimer(self.device_timer, activity=self.activity)
        self._loss = SoftmaxCrossEntropy()

    def step(
        self,
        program: Program,
        optimiser: Optimiser,
        x: Array,
        labels: Array,
        number: int,
        stop: bool = False,
    ) -> Array:
        """Do training step `number`: gradients, their sums over the ranks, the update.

        Returns loss, top-1 and top-5, summed over the batch, and how many ranks gave `stop`:
        float64 (4,), the same on all ranks. All ranks of the mesh must call together.
        """

        def learn(grads: Arrays) -> None:
            updating = self.timer.begin("update", "other")
            optimiser.apply(grads, number)
            self.timer.end(updating)

        by_round = learn if optimiser.by_round else None
        grads, totals = self.train(program, optimiser.state, x, labels, number, by_round)
        told = self.mesh.sum(np.append(totals.read(), stop))
        learn(grads)
        waiting = self.timer.begin("totals", "communication", "sum over the ranks")
        sums = told.wait()
        self.timer.end(waiting)
        return sums

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
        interpreter = self._interpreter(program, state, step, self._reducer(program))
        totals = Totals()
        cursors = _cursors(program, x)
        interpreter.post_receives(cursors, program.order[:1])
        for at, (direction, index) in enumerate(program.order):
            interpreter.post_receives(cursors, program.order[at + 1 : at + 2])
            cursor, micro = cursors[index], program.micro_batches[index]
            if direction == "F":
                interpreter.forward(cursor)
                continue
            final = at + 1 == len(program.order)
            if micro.rounds:
                totals += self._head(micro, cursor, interpreter, labels, final, learn)
            assert interpreter.home is not None
            interpreter.home.last = final
            interpreter.backward(cursor, micro.body.back_to)
            cursor.value = x[:0]
        assert interpreter.home is not None
        grads = interpreter.home.finish()
        interpreter.finish_sends()
        return grads, totals

    def evaluate(self, program: Program, state: State, x: Array, labels: Array) -> Totals:
        """Return this rank's share of the totals of a batch, without dropout or any change."""
        totals = Totals()
        for part, logits in self._answers(program, state, x):
            totals += self._lose(logits, labels[part.labels])[0]
        return totals

    def predict(self, program: Program, state: State, x: Array) -> Array:
        """Return the logits of the examples at `program.answers`, one row each, on the host."""
        answers = [self.ops.fetch(logits)() for _, logits in self._answers(program, state, x)]
        return np.concatenate(answers) if answers else np.zeros((0, 0), x.dtype)

    def _answers(self, program: Program, state: State, x: Array) -> list[tuple[Round, Array]]:
        interpreter = self._interpreter(program, state)
        answers = []
        for micro, cursor in zip(program.micro_batches, _cursors(program, x), strict=True):
            interpreter.forward(cursor)
            for part in micro.rounds:
                head = Cursor(part.chain, cursor.value[part.rows])
                interpreter.forward(head)
                answers.append((part, head.value))
            cursor.tape.clear()
        interpreter.finish_sends()
        return answers

    def _reducer(self, program: Program) -> GradientReducer:
        return GradientReducer(self.mesh, self.timer, program.weights, self.bucket)

    def _interpreter(
        self, program: Program, state: State, step: int = 0, home: GradientReducer | None = None
    ) -> Interpreter:
        weights = FetchedWeights(self.mesh, self.timer, program.weights, state)
        return Interpreter(
            self.mesh, self.ops, self.timer, self.seed, weights, program.count, step, home
        )

    def _head(
        self,
        micro: MicroBatch,
        cursor: Cursor,
        interpreter: Interpreter,
        labels: Array,
        final: bool,
        learn: Callable[[Arrays], None] | None,
    ) -> Totals:
        """Run a micro-batch's rounds forward and backward; return the totals.

        The gradient of the body's output becomes the cursor's value.
        While a round computes, the next one's feed and the last one's gradient travel (OWT). With
        `final`, gradients set out in the last round.
        """
        home = interpreter.home
        assert home is not None
        totals = Totals()
        y = cursor.value
        dy = self.ops.xp.zeros_like(y)
        stop = 0 if micro.learns else None
        heads = [Cursor(part.chain, y[part.rows]) for part in micro.rounds]
        returning: tuple[Round, Cursor] | None = None
        interpreter.forward(heads[0], to_feed=True)
        for number, (part, head) in enumerate(zip(micro.rounds, heads, strict=True)):
            if number + 1 < len(heads):
                interpreter.forward(heads[number + 1], to_feed=True)
            interpreter.forward(head)
            losing = self.timer.begin("loss", "other")
            some, saved = self._lose(head.value, labels[part.labels])
            totals += some
            head.value = self._loss.backward(self.ops, saved, interpreter.count)
            self.timer.end(losing)
            home.last = learn is not None or (final and number + 1 == len(heads))
            interpreter.backward(head, part.chain.back_to if stop is None else stop, to_feed=True)
            if learn is not None:
                grads = home.finish()
                learn({name: g * (interpreter.count / part.count) for name, g in grads.items()})
                interpreter.weights.refresh(grads)
                home = interpreter.home = home.another()
            if returning is not None:
                _return_gradient(*returning, interpreter, stop, dy)
            returning = (part, head)
        assert returning is not None
        _return_gradient(*returning, interpreter, stop, dy)
        cursor.value = dy
        return totals

    def _lose(self, logits: Array, labels: Array) -> tuple[Totals, Any]:
        sums, saved = self._loss.forward(self.ops, logits, labels)
        return Totals([self.ops.fetch(sums)]), saved


def _cursors(program: Program, x: Array) -> list[Cursor]:
    return [Cursor(micro.body, x[micro.rows]) for micro in program.micro_batches]


def _return_gradient(
    part: Round, head: Cursor, interpreter: Interpreter, stop: int | None, dy: Array
) -> None:
    """Finish a round's backward pass and store its gradient of the body's output."""
    interpreter.backward(head, part.chain.back_to if stop is None else stop)
    if stop is not None:
        dy[part.rows] = head.value
