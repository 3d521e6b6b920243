"""Pipeline stages and micro-batches: the order of work, where a network is cut, and that plans
with them compute the same training as one rank."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import BATCH, compare, network, train

from mpicnn import models
from mpicnn.division.compile import compile, compile_all
from mpicnn.division.planfile import load_plan, parse_plan, plan_toml
from mpicnn.division.presets import preset
from mpicnn.division.propagation import check_batch, propagate
from mpicnn.division.schedule import turns
from mpicnn.division.stages import cut
from mpicnn.errors import UserError
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.table import plan_table
from mpicnn.layers import AvgPool, BatchNorm, Linear
from mpicnn.models import Model
from mpicnn.settings.plan_groups import PlanChoice

PLAIN = network(normalised=False)


def one_rank(model):
    return run_ranks(1, lambda comm: train(comm, preset("data", model, (1,)), model=model))


@pytest.fixture(scope="module")
def reference():
    return one_rank(PLAIN)


def pipeline(
    stages, parts, name="data", shares=((1,),), scheme="a", sync="allreduce", order="1f1b"
):
    grid = tuple(len(weights) for weights in shares)
    plan = preset(name, PLAIN, grid, shares, scheme, sync)
    return replace(plan, stages=stages, micro_batches=parts, order=order)


TWO, THREE = ("conv2",), ("norm1", "fc3")
CASES = [
    pipeline(TWO, 3),
    pipeline(TWO, 3, order="gpipe"),
    pipeline(TWO, BATCH),
    pipeline(THREE, 4),
    pipeline(THREE, 4, order="gpipe"),
    pipeline(THREE, 1),
    # A stage without weights, one whose end lies inside the fully connected segment.
    pipeline(("pool1", "drop2", "relu3", "fc5"), 5),
    pipeline((), 4),
    pipeline((), 4, "owt", ((2, 1),), "c", "sharded"),
    pipeline(TWO, 3, "data", ((3, 1),), sync="sharded"),
    pipeline(TWO, 3, "owt", ((0, 1),), "b"),
    pipeline(TWO, 3, "owt", ((1, 2),), "c", "sharded", "gpipe"),
    pipeline(("fc4",), 3, "owt", ((1, 2),)),
    pipeline(THREE, 2, "filter", ((1, 0, 3),)),
    pipeline(TWO, 3, "master-worker", ((1, 2),)),
    pipeline(TWO, 3, "fc-input", ((1, 1), (2, 1)), sync="sharded"),
    pipeline(("fc3",), 4, "owt", ((2, 1), (1, 1)), "b"),
]


@pytest.mark.parametrize("plan", CASES, ids=lambda p: f"{p.stages}-{p.micro_batches}-{p.name}")
def test_stages_train_as_one_rank(plan, reference):
    results = run_ranks(plan.ranks, lambda comm: train(comm, plan, model=PLAIN))
    # Sums in another order: a few hundred roundings of 1e-16, over some steps.
    compare(results, reference, 1e-12)
    for *_, sent, predicted in results:
        assert sent == pytest.approx(predicted)


OVER_MPI = [
    pipeline(TWO, 3),
    pipeline(THREE, 4, order="gpipe"),
    pipeline(TWO, 4, "owt", ((1, 3),), "c", "sharded"),
    pipeline(TWO, 4, "filter", ((2, 1),)),
]


@pytest.mark.mpi
@pytest.mark.parametrize("plan", OVER_MPI, ids=lambda p: f"{p.ranks}ranks-{p.name}")
def test_stages_train_as_one_rank_over_mpi(subcomm, plan, reference):
    comm = subcomm(plan.ranks)
    results = comm.allgather(train(comm, plan, model=PLAIN))
    compare(results, reference, 1e-12)
    *_, sent, predicted = results[comm.Get_rank()]
    assert sent == pytest.approx(predicted)


def test_the_whole_batch_is_normalised_over_stages():
    plan = pipeline(TWO, 1, shares=((2, 1),))
    compare(run_ranks(4, lambda comm: train(comm, plan)), one_rank(network()), 1e-12)


def test_a_first_stage_without_weights_is_sent_no_gradient():
    model = Model("pool-first", PLAIN.input_shape, (("pool0", AvgPool(1)), *PLAIN.layers))
    plan = pipeline(("conv1",), 3)
    results = run_ranks(2, lambda comm: train(comm, plan, model=model))
    compare(results, one_rank(model), 1e-12)
    assert results[1][3] == 0 < results[0][3]


def test_single_precision_stays_close(reference):
    plan = pipeline(THREE, 4)
    results = run_ranks(3, lambda comm: train(comm, plan, np.float32, PLAIN))
    # Roundings of 6e-8, a few hundred to a sum, grow over some steps of momentum.
    np.testing.assert_allclose(results[0][0], reference[0][0], rtol=1e-4)


@pytest.mark.parametrize("depth, count", [(1, 1), (1, 4), (2, 3), (3, 2), (4, 9)])
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_every_micro_batch_goes_forward_then_backward_without_a_deadlock(order, depth, count):
    todo = [list(turns(order, depth, stage, count)) for stage in range(depth)]
    for stage, steps in enumerate(todo):
        forward = [i for direction, i in steps if direction == "F"]
        backward = [i for direction, i in steps if direction == "B"]
        assert forward == backward == list(range(count))
        held = most = 0
        for direction, _ in steps:
            held += 1 if direction == "F" else -1
            most = max(most, held)
        assert most == (count if order == "gpipe" else min(count, depth - stage))
    done = set()
    while any(todo):
        ready = []
        for stage, steps in enumerate(todo):
            if not steps:
                continue
            direction, index = steps[0]
            neighbour = stage - 1 if direction == "F" else stage + 1
            if neighbour in (-1, depth) or (neighbour, direction, index) in done:
                ready.append((stage, *steps.pop(0)))
        assert ready, "every stage waits for another"
        done.update(ready)


def test_stages_have_about_the_same_work():
    model = models.load("vgg11", (3, 64, 64), 10)
    names = [name for name, layer in model.layers if layer.kind == "contraction"]

    def slowest(stages):
        plan = replace(preset("data", model, (1,)), stages=stages)
        costs = [step_costs(program, 4) for program in compile_all(model, plan, 64)]
        return max(sum(c.work.flops.item() for c in stage) for stage in costs)

    for depth in (1, 2, 3):
        stages = cut(model, depth)
        assert len(stages) == depth - 1
        # Passes over memory count a little, so the FLOP alone may be off the best by as much.
        best = min(slowest(other) for other in combinations(names[1:], depth - 1))
        assert slowest(stages) <= 1.05 * best


def test_a_written_pipeline_reads_back():
    plan = pipeline(THREE, 5, "owt", ((1, 2),), order="gpipe")
    again = parse_plan(plan_toml(plan), "plan.toml", PlanChoice(), PLAIN, plan.ranks)
    assert (again.stages, again.micro_batches, again.order) == (THREE, 5, "gpipe")
    assert (again.grid, again.shares) == (plan.grid, plan.shares)
    assert propagate(PLAIN, again) == propagate(PLAIN, plan)


def test_the_settings_make_a_pipeline():
    by_number = load_plan(PlanChoice(stages="2", micro_batches=6), PLAIN, 4)
    assert (by_number.depth, by_number.grid, by_number.micro_batches) == (2, (2,), 6)
    by_name = load_plan(PlanChoice(stages="norm1,fc3", order="gpipe"), PLAIN, 3)
    assert (by_name.stages, by_name.grid, by_name.micro_batches) == (THREE, (1,), 12)
    assert load_plan(PlanChoice(), PLAIN, 4).micro_batches == 1


@pytest.mark.parametrize(
    "asked, ranks, message",
    [
        (PlanChoice(stages="2"), 3, "3 ranks cannot form 2 stages"),
        (PlanChoice(stages="6"), 6, "stages 6: all-layers has 5 layers with weights"),
        (PlanChoice(stages="fc3,conv2"), 3, "fc3, conv2 are not in the network's order"),
        (PlanChoice(stages="conv1"), 2, "no stage can begin at 'conv1'"),
        (PlanChoice(stages="conv7"), 2, "no stage can begin at 'conv7'"),
        (PlanChoice(stages="2", grid="3"), 4, "grid 3 has 3 places, but 2 ranks run in each stage"),
        (
            PlanChoice(stages="2", micro_batches=12),
            2,
            "micro-batches 12: more than the 11 examples",
        ),
    ],
)
def test_wrong_pipelines_are_refused_in_one_line(asked, ranks, message):
    with pytest.raises(UserError, match=message) as error:
        plan = load_plan(asked, PLAIN, ranks)
        propagate(PLAIN, plan)
        check_batch(PLAIN, plan, BATCH)
    assert "\n" not in str(error.value)


def test_batch_normalisation_is_not_cut_up():
    with pytest.raises(UserError, match="layer bn1 normalises over the whole batch"):
        propagate(network(), pipeline(TWO, 2))
    propagate(network(), pipeline(TWO, 1))
    propagate(network(), replace(pipeline(TWO, 2), batch_norm="micro"))
    with pytest.raises(UserError, match="layer bn1 .* which scheme .c. would cut up; use scheme a"):
        late = Model("late", (4,), (("fc1", Linear(3)), ("bn1", BatchNorm()), ("fc2", Linear(5))))
        propagate(late, preset("owt", late, (2,), scheme="c"))


def test_the_batch_norm_of_micro_batches_is_one_ranks_with_as_many():
    parts = replace(preset("data", network(), (1,)), micro_batches=3, batch_norm="micro")
    expected = run_ranks(1, lambda comm: train(comm, parts))
    plan = replace(pipeline(THREE, 3, shares=((2, 1),)), batch_norm="micro")
    compare(run_ranks(plan.ranks, lambda comm: train(comm, plan)), expected, 1e-12)
    whole = one_rank(network())
    assert abs(whole[0][0][1] - expected[0][0][1]) > 1e-6  # it is another training


def test_a_stage_costs_what_its_layers_cost():
    plan = pipeline(TWO, 3)
    whole = preset("data", PLAIN, (1,))
    alone = step_costs(compile(PLAIN, whole, BATCH), 8)
    stages = [step_costs(program, 8) for program in compile_all(PLAIN, plan, BATCH)]
    assert sum(c.work.flops for s in stages for c in s) == sum(c.work.flops for c in alone)
    assert sum(c.held for s in stages for c in s) == sum(c.held for c in alone)
    # The first stage hands conv2's input on, the second its gradient back.
    size = BATCH * np.prod(PLAIN.fed[[name for name, _ in PLAIN.layers].index("conv2")]) * 8
    assert [sum(c.work.bytes_sent for c in s) for s in stages] == [size, size]


def test_the_table_names_stages():
    lines = plan_table(PLAIN, pipeline(TWO, 3), BATCH).splitlines()
    assert "on 2 x 1 rank(s)" in lines[0] and lines[0].endswith("3 micro-batches (1f1b)")
    first_words = {line.split()[1]: line.split()[0] for line in lines[4:] if len(line.split()) > 1}
    assert first_words["conv1"] == "0" and first_words["conv2"] == first_words["fc5"] == "1"
