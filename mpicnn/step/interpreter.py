"""Carry a batch forward and backward through the steps of a chain, on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import Pending
from mpicnn.comm.redistribution import redistribute
from mpicnn.division.move import SUM
from mpicnn.division.program import Chain, Compute, Redistribute, Transfer
from mpicnn.layers.base import Context
from mpicnn.ops.interface import Array, Backend
from mpicnn.step.gradients import GradientReducer
from mpicnn.step.timing import StepTimer
from mpicnn.step.weights import FetchedWeights


@dataclass
class Cursor:
    """Hold how far a pass over a chain has come: its value before step `at`, and its tape.

    `pending` is the value on its way to other ranks or from them, where that was started and not
    yet waited for.
    """

    chain: Chain
    value: Array
    at: int = 0
    tape: list[Any] = field(default_factory=list)
    pending: Pending | None = None


@dataclass
class Interpreter:
    """Carry out the steps of chains, forward and backward, for one batch.

    `home` takes the gradients; None where nothing is learnt.
    """

    mesh: Mesh
    ops: Backend
    timer: StepTimer
    seed: int
    weights: FetchedWeights
    count: int
    step: int = 0
    home: GradientReducer | None = None
    transfers: list[Pending] = field(default_factory=list)

    def forward(self, cursor: Cursor, to_feed: bool = False) -> None:
        """Go forward to the chain's end, or `to_feed`: only until what feeds it has started."""
        steps, feed = cursor.chain.steps, cursor.chain.feed
        if to_feed and feed is None:
            return
        while cursor.at < len(steps):
            item = steps[cursor.at]
            if isinstance(item, Compute):
                cursor.tape.append(self._layer_forward(item, cursor))
            else:
                if cursor.pending is None:
                    self._start(cursor, item, forward=True)
                    if to_feed and cursor.at == feed:
                        return
                self._end(cursor, item, forward=True)
                cursor.tape.append(None)
            cursor.at += 1

    def backward(self, cursor: Cursor, stop: int, to_feed: bool = False) -> None:
        """Go back to step `stop`, or `to_feed`: only until the way back of its feed has started."""
        while cursor.at > stop:
            at = cursor.at - 1
            item = cursor.chain.steps[at]
            if isinstance(item, Compute):
                self._layer_backward(item, cursor)
            else:
                if cursor.pending is None:
                    self._start(cursor, item, forward=False)
                    if to_feed and at == cursor.chain.feed:
                        return
                self._end(cursor, item, forward=False)
            cursor.at = at

    def post_receives(self, cursors: Sequence[Cursor], turns: Sequence[tuple[str, int]]) -> None:
        """Post receives for what another stage will send in these turns."""
        for direction, index in turns:
            cursor, forward = cursors[index], direction == "F"
            steps = cursor.chain.steps if forward or cursor.chain.back_to < cursor.at else ()
            item = steps[0 if forward else -1] if steps else None
            if isinstance(item, Transfer) and item.out != forward:
                self._start(cursor, item, forward)

    def finish_sends(self) -> None:
        """Wait until all messages to other stages have been sent."""
        waiting = self.timer.begin("stages", "communication", "messages to other stages")
        for pending in self.transfers:
            if not pending.poll():
                pending.wait()
        self.transfers.clear()
        self.timer.end(waiting)

    def _start(self, cursor: Cursor, item: Redistribute | Transfer, forward: bool) -> None:
        starting = self.timer.begin(item.name, "communication", item.detail(forward))
        if isinstance(item, Transfer):
            cursor.pending = self._transfer(cursor.value, item, forward)
        else:
            group = self.mesh.axes[item.hop.axis]
            move = item.hop.move if forward else item.hop.move.adjoint
            cursor.pending = redistribute(group, move, cursor.value, item.hop.shape)
        self.timer.end(starting)

    def _transfer(self, value: Array, item: Transfer, forward: bool) -> Pending:
        """Begin to send `value` to another stage, or to receive its successor."""
        link = self.mesh.behind if item.out else self.mesh.before
        assert link is not None
        if item.out != forward:
            pending = link.receive(item.shape, value.dtype)
            self.transfers.append(pending)
            return pending
        self.transfers.append(link.send(value))
        return Pending.done(value[:0])

    def _end(self, cursor: Cursor, item: Redistribute | Transfer, forward: bool) -> None:
        waiting = self.timer.begin(item.name, "communication", item.detail(forward))
        assert cursor.pending is not None
        cursor.value = cursor.pending.wait()
        self.timer.transferred(item.name, cursor.pending.began, cursor.pending.ended)
        cursor.pending = None
        self.timer.end(waiting)

    def _poll(self) -> None:
        """Let MPI make progress with what travels beside the computation."""
        if not (self.transfers or self.mesh.engine.busy):
            return
        polling = self.timer.begin("progress", "communication")
        self.mesh.engine.poll()
        self.transfers = [pending for pending in self.transfers if not pending.poll()]
        self.timer.end(polling)

    def _layer_forward(self, item: Compute, cursor: Cursor) -> Any:
        """Run a layer on the cursor's value; return what its backward pass needs."""
        p = self.weights.of(item)
        computing = self.timer.begin(item.name, item.category, "forward")
        saved = None
        if item.idle:
            cursor.value = self.ops.xp.empty(item.y_shape, cursor.value.dtype)
        else:
            run = self._run(item, need_dx=True)
            cursor.value, saved = item.layer.forward(self.ops, cursor.value, p, run)
        self.timer.end(computing)
        self._poll()
        return saved

    def _layer_backward(self, item: Compute, cursor: Cursor) -> None:
        """Run a layer backward on the cursor's value and send its gradients home."""
        p = self.weights.of(item)
        computing = self.timer.begin(item.name, item.category, "backward")
        dx: Array | None
        if item.idle:
            learnt = {s: a for s, a in p.items() if item.weights[s] not in self.weights.buffers}
            grads = {short: self.ops.xp.zeros_like(a) for short, a in learnt.items()}
            dx = self.ops.xp.empty(item.x_shape, cursor.value.dtype)
        else:
            assert self.home is not None
            run = self._run(item, need_dx=not item.first)
            run.sums = self.home.sums(item.weights)
            dx, grads = item.layer.backward(
                self.ops, cursor.value, cursor.tape[cursor.at - 1], p, run
            )
        cursor.tape[cursor.at - 1] = None
        if dx is not None:
            cursor.value = dx
        self.timer.end(computing)
        assert self.home is not None
        self.home.add({item.weights[short]: g for short, g in grads.items()})
        self._poll()

    def _run(self, item: Compute, need_dx: bool) -> Context:
        return Context(
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
