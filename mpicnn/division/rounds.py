"""Write the rounds of the head: its runs on parts of the batch (OWT's schemes)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from mpicnn.division.network import Value
from mpicnn.division.operations import (
    Backward,
    Forward,
    Operation,
    Rows,
    Slot,
    Store,
    Update,
    Wait,
)
from mpicnn.division.schedule import Part, parts
from mpicnn.division.segment import OWN, Segment
from mpicnn.division.strategy import BATCH
from mpicnn.errors import UserError


class Round(NamedTuple):
    """Hold a run of the head on some `examples`: what feeds it, what it computes, and the end of
    the way back of its gradient."""

    examples: int
    feed: list[Operation]
    ops: list[Operation]
    returning: list[Operation]


def _cut_feed(ops: list[Operation]) -> tuple[list[Operation], list[Operation]]:
    """Return what may be done while another round computes, and the rest.

    That is all up to the first wait, if no weights are in it: they may change between rounds, and
    their gradients count once a round.
    """
    at = next((i for i, op in enumerate(ops) if isinstance(op, Wait)), 0)
    weighted = any(isinstance(op, Forward) and op.use for op in ops[:at])
    at = 0 if weighted else at
    return ops[:at], ops[at:]


def _cut_return(ops: list[Operation], behind: int) -> tuple[list[Operation], list[Operation]]:
    """Return what a round computes, and what is left once its gradient is on its way back.

    Nothing with weights is left.
    """
    weighted = [i for i, op in enumerate(ops) if isinstance(op, Backward) and op.grads]
    last = max([behind - 1, *weighted])
    at = next((i for i in range(last + 1, len(ops)) if isinstance(ops[i], Wait)), len(ops))
    return ops[:at], ops[at:]


def write_rounds(body: Segment, head: range, learn: Mapping[str, Slot] | None) -> None:
    """Write the rounds of the layers `head` behind a `body` that has gone forward.

    While a round computes, the next one's feed and the last one's gradient travel (OWT). With
    `learn`, the head's gradients by name, its parameters change after every round, by gradients of
    that round's mean loss.
    Raises UserError where the head is fed by several values, or not by a part of the batch.
    """
    model, plan = body.model, body.layouts.plan
    first = model.layers[head.start][0]
    crossing = model.crossing(head.start)
    if len(crossing) > 1:
        raise UserError(
            f"plan {plan.name}: scheme ({plan.scheme}) needs a stage that begins where one "
            f"layer alone feeds those behind, unlike {first}; use scheme a or another stage"
        )
    (entry,) = crossing
    held = body.values[entry]
    division = list(body.network.divisions.values())[entry]
    shared = all(row.shares_batch for row in division.rows)
    if plan.scheme != "a" and not shared and head.start > model.fc_start:
        raise UserError(
            f"plan {plan.name}: scheme ({plan.scheme}) needs all fully connected layers in one "
            f"stage, but the last begins at {first}; begin it at "
            f"{model.layers[model.fc_start][0]} or before, or use scheme a"
        )
    gradient = body.network.slot()
    found = [
        _round(body, head, part, gradient)
        for part in parts(plan, division, held.layout, held.shape[BATCH])
    ]
    body.ops += found[0].feed
    returning: list[Operation] = []
    for this, following in zip(found, [*found[1:], None], strict=True):
        body.ops += [*(following.feed if following else ()), *this.ops]
        if learn is not None:
            body.ops.append(Update(learn, body.network.count / this.examples))
        body.ops += returning
        returning = this.returning
    body.ops += returning
    if model.learns[entry]:
        body.contribute(entry, OWN, gradient)


def _round(body: Segment, indices: range, part: Part, gradient: Slot) -> Round:
    """Return what one run of the head does; its entry's gradient goes to its rows of a slot."""
    (entry,) = body.model.crossing(indices.start)
    held = body.values[entry]
    shape = (part.positions.size, *held.shape[1:])
    value = Value(shape, part.entry, body.network.slot())
    positions = body.positions[part.positions]
    head = Segment(body.network, indices, {entry: value}, positions, Counter(), loss=True)
    head.ops.append(Rows(held.slot, value.slot, part.rows, shape, part.entry))
    head.begin(entry)
    head.forward(indices)
    feed, head.ops = _cut_feed(head.ops)
    head.lose()
    behind = len(head.ops)
    head.backward(indices)
    if body.model.learns[entry]:
        back = head.gradient(entry)
        head.ops.append(Store(back, gradient, part.rows, held.shape, held.layout))
    ops, returning = _cut_return(head.ops, behind)
    return Round(part.positions.size, feed, ops, returning)
