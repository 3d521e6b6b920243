"""Plans that nobody picked by hand: equal to one rank, or refused in one line before they run."""

import pytest
from oracle import run_ranks
from plan_cases import BATCH, RAGGED, compare, network, train
from random_cases import compare_with_one_rank, draw, refusal

from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import preset

SEEDS = range(250)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_plan_trains_as_one_rank_or_is_refused_in_one_line(seed):
    compare_with_one_rank(draw(seed))


def test_most_random_plans_are_accepted():
    refused = sum(bool(refusal(draw(seed))) for seed in SEEDS)
    assert refused < len(SEEDS) / 2


def plan(layers, grid=(2,), scheme="a", shares=None):
    return Plan(grid, shares or equal_shares(grid), layers, scheme)


HEAD = {"fc3": LayerPlan("n"), "fc4": LayerPlan("o"), "fc5": LayerPlan("o")}
FOUND = {
    "a weighted layer before the feed": plan(HEAD, (3,), "c"),
    "shares of a layer of the head": plan({"fc4": LayerPlan("n", ((3.0, 1.0),))}, (2,), "c"),
    "rank by rank": plan({"fc4": LayerPlan("n", ((3.0, 1.0, 2.0),))}, (3,), "b"),
    "a share that rounds to nothing": plan({"fc3": LayerPlan("c")}, shares=((200.0, 1.0),)),
    "one dimension twice": plan(
        {"fc3": LayerPlan("nn", ((2.0, 1.0), (1.0, 1.0)))}, (2, 2)
    ),
    "an axis of one rank": plan({"fc3": LayerPlan("cc")}, (2, 1)),
    "the loss on the first of two axes": plan({"loss": LayerPlan("mm")}, (2, 2)),
    "the first rank of one axis alone": plan({"fc3": LayerPlan("mo", home="first")}, (2, 2)),
    "a bias where inputs and outputs are divided": plan({"fc3": LayerPlan("co")}, (2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_a_plan_that_once_went_wrong_trains_as_one_rank(name):
    model = network(normalised=FOUND[name].scheme == "a")
    one = preset("data", model, (1,))
    reference = run_ranks(1, lambda comm: train(comm, one, model=model, steps=6))
    ours = FOUND[name]
    results = run_ranks(ours.ranks, lambda comm: train(comm, ours, model=model, steps=6))
    assert RAGGED < ours.ranks * 4 < 2 * BATCH  # batches with and without enough examples
    compare(results, reference, 1e-12)
