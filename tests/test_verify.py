"""Programs that do not fit together are found without MPI."""

from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
from plan_cases import BATCH, make, network
from random_cases import SMALL, draw

from mpicnn.division.compile import compile_all
from mpicnn.division.move import Move
from mpicnn.division.operations import (
    Accumulate,
    Backward,
    Free,
    Loss,
    Operation,
    Receive,
    Rows,
    Start,
    Sum,
    Wait,
)
from mpicnn.division.placement import Partial, Replicated, Split
from mpicnn.division.plan import Plan, equal_shares
from mpicnn.division.verify import BrokenProgramError, check
from mpicnn.errors import UserError

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


def nothing_arrives(ops):
    """Take out a receive, and what waits for it."""
    for kind in (Receive, Wait):
        del ops[find(ops, kind)]


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
    "a round is taken from too few rows": lambda: changed(
        programs(), other(Rows, ranges=np.array([[0, 0], [1, 1]]))
    ),
    "examples lose twice": lambda: changed(programs(), other(Loss, labels=np.arange(BATCH))),
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
    "a message is not received": lambda: changed(programs(**STAGED), nothing_arrives, 1),
}


def test_any_operation_left_out_or_done_twice_is_found():
    """Of every kind of operation that a random program has, one chosen at random."""
    tried = {Free}  # what is let go too late costs memory alone
    for seed, graph in product(range(16), (False, True)):
        case, rng = draw(seed, graph), np.random.default_rng(seed)
        by_round = case.plan.scheme != "a" and case.plan.micro_batches == 1
        options = SMALL._replace(by_round=by_round)
        try:
            whole = compile_all(case.model, case.plan, case.batches[0], options)
        except UserError:
            continue
        check(whole)
        for stage, program in enumerate(whole):
            for kind in {type(op) for op in program.ops} - {Free}:
                tried.add(kind)
                at = rng.choice([i for i, op in enumerate(program.ops) if isinstance(op, kind)])
                # rows, and sums in an array of their own, come out the same a second time
                for times in (0,) if kind in (Rows, Accumulate) else (0, 2):

                    def change(ops, at=at, times=times):
                        ops[at : at + 1] = [ops[at]] * times

                    with pytest.raises(BrokenProgramError):
                        check(changed(whole, change, stage))
    assert tried == set(get_args(Operation))


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
