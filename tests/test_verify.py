"""Programs of all ranks that do not fit each other are found without MPI."""

from dataclasses import replace

import numpy as np
import pytest
from plan_cases import BATCH, make, network

from mpicnn.division.move import Move
from mpicnn.division.placement import Replicated, Split
from mpicnn.division.plan import Plan, equal_shares
from mpicnn.division.program import Compute, Redistribute, Transfer
from mpicnn.division.verify import BrokenProgramError, all_programs, check

PLAIN = network(normalised=False)


def programs(name="owt", scheme="c", **more):
    plan = replace(make(name, (2,), ((3, 1),), scheme, "sharded"), **more)
    return all_programs(PLAIN if more or scheme != "a" else network(), plan, BATCH)


def with_micro(broken, change, place=(0, (1,))):
    """Return the programs with one rank's first micro-batch changed."""
    program = broken[place]
    first, *others = program.micro_batches
    return {**broken, place: replace(program, micro_batches=(change(first), *others))}


def without(chain, kind, index=0):
    step = [s for s in chain.steps if isinstance(s, kind)][index]
    return replace(chain, steps=tuple(s for s in chain.steps if s is not step))


def in_head(change):
    return lambda micro: replace(
        micro,
        rounds=(replace(micro.rounds[0], chain=change(micro.rounds[0].chain)), *micro.rounds[1:]),
    )


def in_weight(broken, change, place=(0, (1,))):
    program = broken[place]
    at = next(i for i, w in enumerate(program.weights) if w.fetch)
    weights = list(program.weights)
    weights[at] = change(weights[at])
    return {**broken, place: replace(program, weights=tuple(weights))}


def moved(chain):
    """Return a chain whose first move goes to another division."""
    steps = list(chain.steps)
    at = next(i for i, s in enumerate(steps) if isinstance(s, Redistribute))
    hop = steps[at].hop
    steps[at] = replace(steps[at], hop=replace(hop, shape=(hop.shape[0] + 1, *hop.shape[1:])))
    return replace(chain, steps=tuple(steps))


STAGED = {"stages": ("conv2",), "micro_batches": 2, "scheme": "a"}
BREAKS = {
    "a move is left out": lambda: with_micro(
        programs(), in_head(lambda chain: without(chain, Redistribute))
    ),
    "a layer is left out": lambda: with_micro(
        programs(), in_head(lambda chain: without(chain, Compute, -1))
    ),
    "a round is left out on one rank": lambda: with_micro(
        programs(), lambda micro: replace(micro, rounds=micro.rounds[:-1])
    ),
    "rounds overlap": lambda: with_micro(
        programs(),
        lambda micro: replace(
            micro, rounds=(*micro.rounds[:-1], replace(micro.rounds[-1], rows=slice(0, 3)))
        ),
    ),
    "examples lose twice": lambda: with_micro(
        programs(),
        lambda micro: replace(
            micro, rounds=(replace(micro.rounds[0], labels=np.arange(BATCH)), *micro.rounds[1:])
        ),
    ),
    "a weight is not fetched": lambda: in_weight(programs(), lambda w: replace(w, fetch=())),
    "a gradient does not come home": lambda: in_weight(programs(), lambda w: replace(w, bring=())),
    "a part of a weight lives nowhere": lambda: in_weight(
        programs("data", "a"), lambda w: replace(w, home=(Split(0, (0, *[w.param.shape[0]] * 2)),))
    ),
    "a transfer is not received": lambda: with_micro(
        programs(**STAGED), lambda micro: replace(micro, body=without(micro.body, Transfer)),
        (1, (0,)),
    ),
    "a micro-batch stays forward": lambda: {
        place: replace(program, order=program.order[:-1])
        for place, program in programs(**STAGED).items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_found(name):
    with pytest.raises(BrokenProgramError):
        check(BREAKS[name]())


def test_another_shape_on_one_rank_is_found():
    whole = programs()
    with pytest.raises((BrokenProgramError, ValueError)):
        check(with_micro(whole, in_head(moved)))
    check(whole)
    check(programs(**STAGED))


def test_another_move_on_one_rank_is_found_though_its_shapes_fit():
    """A Split that gives a rank everything and Replicated have one shape there."""
    plan = Plan((2,), equal_shares((2,)))
    whole = all_programs(PLAIN, plan, BATCH)
    program = whole[0, (0,)]
    at = next(i for i, w in enumerate(program.weights) if w.bring)
    weight = program.weights[at]
    rows = weight.param.shape[0]
    everything = Split(0, (0, rows, rows))
    hop = replace(weight.bring[0], move=Move(weight.bring[0].move.src, everything))
    other = replace(weight, bring=(hop,), home=(everything,))
    assert isinstance(weight.home[0], Replicated)
    weights = (*program.weights[:at], other, *program.weights[at + 1 :])
    with pytest.raises(BrokenProgramError, match="other collectives"):
        check({**whole, (0, (0,)): replace(program, weights=weights)})
