"""Programs that do not fit together are found without MPI."""

from dataclasses import replace

import numpy as np
import pytest
from plan_cases import BATCH, make, network

from mpicnn.division.compile import compile_all
from mpicnn.division.move import Move
from mpicnn.division.operations import (
    Backward,
    Forward,
    Loss,
    Receive,
    Rows,
    Send,
    Start,
    Store,
    Sum,
    Wait,
)
from mpicnn.division.placement import Partial, Replicated, Split
from mpicnn.division.plan import Plan, equal_shares
from mpicnn.division.verify import BrokenProgramError, check

PLAIN = network(normalised=False)


def programs(name="owt", scheme="c", **more):
    plan = replace(make(name, (2,), ((3, 1),), scheme, "sharded"), **more)
    return compile_all(PLAIN if more or scheme != "a" else network(), plan, BATCH)


def changed(broken, change, stage=0):
    """Return the programs with one stage's list of operations changed."""
    ops = list(broken[stage].ops)
    change(ops)
    new = replace(broken[stage], ops=tuple(ops))
    return [*broken[:stage], new, *broken[stage + 1 :]]


def find(ops, kind, index=0):
    return [at for at, op in enumerate(ops) if isinstance(op, kind)][index]


def without(*kinds):
    """Return a change that takes out the first operation of each kind."""

    def change(ops):
        for kind in kinds:
            del ops[find(ops, kind)]

    return change


def other(kind, index=0, **fields):
    """Return a change of an operation's fields."""

    def change(ops):
        at = find(ops, kind, index)
        ops[at] = ops[at]._replace(**fields)

    return change


def at_home(broken, home):
    """Return the programs with another home of the first weight."""
    (program,) = broken
    first, *others = program.weights
    rows = first.param.shape[0]
    weights = (replace(first, home=(home(rows),)), *others)
    return [replace(program, weights=weights)]


def a_gradient_sets_out_early(ops):
    """Two micro-batches add to it: it is sent after the first of them."""
    ops.insert(find(ops, Backward) + 1, ops.pop(find(ops, Sum)))


STAGED = {"stages": ("conv2",), "micro_batches": 2, "scheme": "a"}
BREAKS = {
    "a move is left out": lambda: changed(programs(), without(Start)),
    "nobody waits for a move": lambda: changed(programs(), without(Wait)),
    "a layer is left out": lambda: changed(programs(), without(Forward)),
    "a layer stays forward": lambda: changed(programs(), without(Backward)),
    "a round is taken from too few rows": lambda: changed(
        programs(), other(Rows, ranges=np.array([[0, 0], [1, 1]]))
    ),
    "examples lose twice": lambda: changed(programs(), other(Loss, labels=np.arange(BATCH))),
    "a round's gradient is lost": lambda: changed(programs("owt", "b"), without(Store)),
    "sums of gradients are another message": lambda: changed(
        programs("data", "a", sync="allreduce"), other(Sum, names=("conv1.w",))
    ),
    "a gradient sets out before it is complete": lambda: changed(
        programs("data", "a", micro_batches=2, sync="allreduce"), a_gradient_sets_out_early
    ),
    "a part of a weight lives nowhere": lambda: at_home(
        programs("data", "a"), lambda rows: Split(0, (0, 1, rows - 1))
    ),
    "a weight has no home": lambda: at_home(programs("data", "a"), lambda rows: Partial()),
    "a message is not received": lambda: changed(programs(**STAGED), without(Receive, Wait), 1),
    "a message is not sent": lambda: changed(programs(**STAGED), without(Send)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found(name):
    with pytest.raises(BrokenProgramError):
        check(BREAKS[name]())


def test_another_shape_is_found():
    def moved(ops):
        at = find(ops, Start)
        hop = ops[at].hop
        ops[at] = ops[at]._replace(hop=hop._replace(shape=(hop.shape[0] + 1, *hop.shape[1:])))

    whole = programs()
    with pytest.raises(BrokenProgramError):
        check(changed(whole, moved))
    check(whole)
    check(programs(**STAGED))


def test_another_move_is_found_though_its_shapes_fit():
    """A Split that gives a rank everything and Replicated have one shape there."""
    whole = compile_all(PLAIN, Plan((2,), equal_shares((2,)), sync="sharded"), BATCH)

    def elsewhere(ops):
        at = next(i for i, op in enumerate(ops) if isinstance(op, Start) and not op.back)
        hop = ops[at].hop
        assert isinstance(hop.move.dst, Replicated)
        everything = Split(0, (0, *[hop.shape[0]] * 2))
        ops[at] = ops[at]._replace(hop=hop._replace(move=Move(hop.move.src, everything)))

    with pytest.raises(BrokenProgramError, match="the value is"):
        check(changed(whole, elsewhere))
