"""Train and answer with a program on one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpicnn.comm.mesh import Mesh
from mpicnn.division.program import Program
from mpicnn.job.activity import Activity
from mpicnn.layers.loss import PLAIN, Labels, SoftmaxCrossEntropy
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.interpreter import Batch, Interpreter, Tools, Totals
from mpicnn.step.optimiser import Optimiser
from mpicnn.step.state import Arrays, State
from mpicnn.step.timing import StepTimer
from mpicnn.step.trace import Trace


class Executor:
    """Run programs on one rank's mesh and backend; `activity` is told what is done.

    `loss` is what training lowers. All ranks of the mesh must call together.
    """

    def __init__(
        self,
        mesh: Mesh,
        ops: Backend,
        seed: int,
        activity: Activity | None = None,
        loss: SoftmaxCrossEntropy = PLAIN,
    ) -> None:
        self.mesh = mesh
        self.ops = ops
        self.seed = seed
        self.activity = activity or Activity()
        self.loss = loss
        self.device_timer = ops.Timer()
        self.timer = StepTimer(self.device_timer, activity=self.activity)

    def time_step(self, marked: bool, trace: Trace | None = None) -> StepTimer:
        """Return a new timer, for what is done from now on; layers are timed if it is `marked`."""
        self.timer = StepTimer(self.device_timer, trace, self.activity, marked)
        return self.timer

    def step(
        self,
        program: Program,
        optimiser: Optimiser,
        x: Array,
        labels: Labels,
        number: int,
        stop: bool = False,
    ) -> Array:
        """Do training step `number`: gradients, their sums over the ranks, the update.

        Returns loss, top-1 and top-5, summed over the batch, and how many ranks gave `stop`:
        float64 (4,), the same on all ranks.
        """

        def learn(grads: Arrays) -> None:
            self._learn(optimiser, grads, number, last=False)

        grads, totals = self.train(program, optimiser.state, x, labels, number, learn)
        told = self.mesh.sum(np.append(totals.read(), stop))
        self._learn(optimiser, grads, number, last=True)
        waiting = self.timer.begin("totals", "communication", "sum over the ranks")
        sums = told.wait()
        self.timer.end(waiting)
        return sums

    def _learn(self, optimiser: Optimiser, grads: Arrays, number: int, last: bool) -> None:
        """Update parameters, for the `last` time in a step or not.

        What ranks sum meanwhile counts as communication.
        """
        updating = [self.timer.begin("update", "other")]

        def total(values: Array) -> Array:
            self.timer.end(updating.pop())
            waiting = self.timer.begin("norms", "communication", "sum over the ranks")
            sums = self.mesh.sum(values).wait()
            self.timer.end(waiting)
            updating.append(self.timer.begin("update", "other"))
            return sums

        optimiser.apply(grads, number, total)
        if last:
            optimiser.average()
        self.timer.end(updating.pop())

    def train(
        self,
        program: Program,
        state: State,
        x: Array,
        labels: Labels,
        step: int,
        learn: Callable[[Arrays], None] | None = None,
    ) -> tuple[Arrays, Totals]:
        """Return the gradients of the batch's mean loss, home, and this rank's share of the totals.

        `x` holds the examples at `program.positions`, `labels` those of the whole batch. Where the
        program updates the head after every round, these gradients are not returned but passed to
        `learn`, of the mean loss of that round's examples, for it to change the parameters in
        place (OWT's variable batch size).
        """
        batch = Batch(x, labels, step, train=True)
        run = Interpreter(self._tools(self.timer), program, state, batch, learn)
        run.run(program.ops)
        grads = {name: run.values[slot] for name, slot in program.grads.items()}
        return {name: g for name, g in grads.items() if g is not None}, run.totals

    def evaluate(
        self,
        program: Program,
        state: State,
        x: Array,
        labels: Array,
        guesses: Array | None = None,
    ) -> Totals:
        """Return this rank's share of the totals of a batch, without dropout or any change.

        `guesses` (examples of the batch,) gets the class that is seen in each of its share.
        """
        run = self._answer(program, state, Batch(x, labels))
        totals = Totals()
        for loss, logits in run.answers:
            if guesses is not None:
                known = labels[loss.labels]
                guesses[loss.labels] = guessed(self.ops.fetch(logits)(), known)
            totals += run.lose(loss, logits)[0]
        return totals

    def predict(self, program: Program, state: State, x: Array) -> Array:
        """Return the logits of the examples at `program.answers`, one row each, on the host."""
        run = self._answer(program, state, Batch(x, np.zeros(0, np.int64)))
        answers: list[Any] = [self.ops.fetch(logits)() for _, logits in run.answers]
        return np.concatenate(answers) if answers else np.zeros((0, 0), x.dtype)

    def _answer(self, program: Program, state: State, batch: Batch) -> Interpreter:
        untimed = StepTimer(self.device_timer, activity=self.activity, marked=False)
        run = Interpreter(self._tools(untimed), program, state, batch)
        run.run(program.forward)
        return run

    def _tools(self, timer: StepTimer) -> Tools:
        return Tools(self.mesh, self.ops, timer, self.seed, self.loss)


def guessed(logits: Array, labels: Array) -> Array:
    """Return the class of the largest logit of each row, int64 (rows,).

    Where the right one, by `labels`, shares the largest with another, it is the other: as top-1
    counts (`ops.interface`).
    """
    rows = np.arange(len(logits))
    others = logits.copy()
    others[rows, labels] = -np.inf
    return np.where(logits[rows, labels] > others.max(axis=1), labels, others.argmax(axis=1))
