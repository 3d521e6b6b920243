"""Every optimiser under every home of the weights equals one rank's, moments and means too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from oracle import run_ranks
from plan_cases import compare, make, network, train

from mpicnn.division.presets import preset
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.step.optimiser import Hyper

STEPS = 3
LOSS = SoftmaxCrossEntropy(0.2, (1.0, 3.0, 0.5, 2.0, 1.0))
ALL = Hyper(0.02, decay=0.01, bias_rate=2.0, ema=0.8)
RULES = {
    "nesterov": replace(ALL, nesterov=True, clip=0.5),
    # eps is large enough that directions do not follow the rounding of tiny gradients
    "adamw": replace(ALL, optimiser="adamw", eps=1e-2),
    "lars": replace(ALL, rate=1.0, optimiser="lars", trust=0.02, clip=0.5),
    "lamb": replace(ALL, optimiser="lamb", eps=1e-2, clip=0.5),
}

EQUAL, UNEQUAL = (1, 1, 1), (1, 0, 3)
HOMES = {
    "replicated": make("data", (3,), (EQUAL,), "a", "allreduce"),
    "sharded": make("data", (3,), (UNEQUAL,), "a", "sharded"),
    "first rank": make("master-worker", (3,), (EQUAL,), "a", "allreduce"),
    "filters": make("filter", (3,), (UNEQUAL,), "a", "allreduce"),
    "filters sharded": make("filter", (2,), ((1, 3),), "a", "sharded"),
    "neurons in rounds": make("owt", (2,), ((3, 1),), "c", "sharded"),
    "all of them": make("mixed", (3,), (EQUAL,), "a", "allreduce"),
    "two axes": make("owt", (2, 2), ((2, 1), (1, 3)), "a", "allreduce"),
    "two axes sharded": make("fc-input", (2, 2), ((1, 1), (1, 3)), "a", "sharded"),
}
PLAIN = network(normalised=False)


def staged(name, shares, sync="allreduce", stages=("conv2",), **more):
    plan = preset(name, PLAIN, tuple(map(len, shares)), shares, "a", sync)
    return replace(plan, stages=stages, micro_batches=3, **more)


STAGES = {
    "replicated": staged("data", ((1, 1),)),
    "sharded": staged("data", ((3, 1),), "sharded"),
    "neurons": staged("owt", ((1, 2),), order="gpipe"),
    # the second stage has no weights
    "stage without weights": staged("data", ((1,),), stages=("pool1", "conv2", "relu4")),
}


def run(comm, plan, rule, model=None):
    return train(comm, plan, model=model, steps=STEPS, hyper=RULES[rule], loss=LOSS)


@pytest.fixture(scope="module", params=RULES)
def references(request):
    """Return a rule, and what one rank makes of it with and without batch normalisation."""
    rule = request.param
    alone = preset("data", network(), (1,))
    return rule, *(
        run_ranks(1, lambda comm, model=model: run(comm, alone, rule, model))
        for model in (network(), PLAIN)
    )


@pytest.mark.parametrize("home", HOMES)
def test_optimiser_trains_as_on_one_rank(references, home):
    rule, reference, _ = references
    plan = HOMES[home]
    compare(run_ranks(plan.ranks, lambda comm: run(comm, plan, rule)), reference, 1e-12)


@pytest.mark.parametrize("home", STAGES)
def test_optimiser_trains_as_on_one_rank_in_stages(references, home):
    rule, _, reference = references
    plan = STAGES[home]
    compare(run_ranks(plan.ranks, lambda comm: run(comm, plan, rule, PLAIN)), reference, 1e-12)


@pytest.mark.mpi
def test_optimiser_trains_as_on_one_rank_over_mpi(subcomm, references):
    rule, reference, _ = references
    comm = subcomm(3)
    compare(comm.allgather(run(comm, HOMES["sharded"], rule)), reference, 1e-12)


@pytest.mark.mpi
def test_optimiser_trains_as_on_one_rank_in_stages_over_mpi(subcomm, references):
    rule, _, reference = references
    comm = subcomm(4)
    compare(comm.allgather(run(comm, STAGES["sharded"], rule, PLAIN)), reference, 1e-12)
