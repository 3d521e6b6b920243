"""Frozen layers: their weights stay as they are, nothing of them travels, under every plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import BATCH, HYPER, SMALL, compare, make, network, train, whole
from random_cases import SEED, compare_with_one_rank, draw, one_rank, refusal

from mpicnn.division.compile import compile, compile_all
from mpicnn.division.operations import Backward, Start, Sum
from mpicnn.division.plan import Plan, equal_shares
from mpicnn.division.presets import preset
from mpicnn.division.stages import cut
from mpicnn.division.verify import check
from mpicnn.errors import UserError
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.table import plan_table
from mpicnn.layers import Add, Conv, Flatten, Linear, ReLU
from mpicnn.models import Model, freeze
from mpicnn.models.model import layer_of
from mpicnn.step.initial import initial_rows

SEEDS = range(40)


def frozen_at_random(case: Any, seed: int) -> Any:
    """Return a case in which some layers, not all, are frozen: none where one alone has weights."""
    rng = np.random.default_rng((seed, 1))
    names = list(dict.fromkeys(map(layer_of, case.model.param_specs())))
    chosen = rng.permutation(names)[: rng.integers(1, len(names))] if len(names) > 1 else []
    by = [f"{name[:-1]}[{name[-1]}]" if rng.random() < 0.3 else str(name) for name in chosen]
    return replace(case, model=freeze(case.model, ",".join(by)))


@pytest.mark.parametrize("graph", [False, True], ids=["chain", "graph"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_frozen_layers_under_a_random_plan_train_as_on_one_rank(seed, graph) -> None:
    case = frozen_at_random(draw(seed, graph), seed)
    reference = one_rank(case)
    compare_with_one_rank(case, reference)
    changed = []
    for name, w in whole(reference).items():
        start = started(case.model)[name]
        if layer_of(name) in case.model.frozen:
            np.testing.assert_array_equal(w, start)
        else:
            changed.append(not np.array_equal(w, start))
    assert any(changed)


def started(model: Model) -> dict[str, Any]:
    return {
        name: initial_rows(p, SEED, name, (0, p.shape[0]), np.float64)
        for name, p in (model.param_specs() | model.buffer_specs()).items()
    }


def test_most_random_cases_have_frozen_layers_and_are_accepted() -> None:
    cases = [frozen_at_random(draw(s, graph), s) for s in SEEDS for graph in (False, True)]
    accepted = [case for case in cases if case.model.frozen and not refusal(case)]
    assert len(accepted) > len(cases) / 3
    assert sum(bool(case.plan.stages) for case in accepted) > 5


EQUAL, UNEQUAL = (1, 1, 1), (1, 0, 3)
PLANS = {
    "sharded": make("data", (3,), (UNEQUAL,), "a", "sharded"),
    "master-worker": make("master-worker", (3,), (EQUAL,), "a", "allreduce"),
    "filters": make("filter", (3,), (UNEQUAL,), "a", "allreduce"),
    "two axes": make("fc-input", (2, 2), ((1, 1), (1, 3)), "a", "sharded"),
}
RULES = {
    "conv1,bn*": replace(HYPER, clip=0.5, ema=0.8),
    "fc[34],bn2": replace(HYPER, optimiser="adamw", eps=1e-2, clip=0.5),
    "conv*,bn*": replace(HYPER, rate=1.0, optimiser="lars", trust=0.02, clip=0.5),
    "conv1,bn*,fc4": replace(HYPER, optimiser="lamb", eps=1e-2, ema=0.8),
}
"""By what is frozen meanwhile: which layers that may be, under every plan, random cases show."""


@pytest.mark.parametrize("patterns", RULES)
def test_every_optimiser_leaves_frozen_layers_alone(patterns) -> None:
    model = freeze(network(), patterns)

    def run(comm: Any, plan: Plan) -> Any:
        return train(comm, plan, model=model, steps=3, hyper=RULES[patterns])

    reference = run_ranks(1, lambda comm: run(comm, preset("data", model, (1,))))
    kept = whole(reference)
    for name in model.param_specs() | model.buffer_specs():
        section = "params" if name in model.param_specs() else "buffers"
        if layer_of(name) in model.frozen:
            sections = {key.split("/")[0] for key in kept if key.endswith(f"/{name}")}
            assert sections == {section}
    for plan in PLANS.values():
        compare(run_ranks(plan.ranks, lambda comm, plan=plan: run(comm, plan)), reference, 1e-12)


@pytest.mark.mpi
def test_frozen_layers_over_mpi(subcomm) -> None:
    comm, model = subcomm(2), freeze(network(), "conv1,bn*,fc4")
    rule = RULES["conv*,bn*"]
    reference = run_ranks(
        1,
        lambda one: train(one, preset("data", model, (1,)), model=model, steps=3, hyper=rule),
    )
    plan = make("filter", (2,), ((1, 3),), "a", "sharded")
    found = train(comm, plan, model=model, steps=3, hyper=rule)
    compare(comm.allgather(found), reference, 1e-12)


def test_frozen_batch_norm_needs_no_whole_batch() -> None:
    """Its statistics are fixed: rounds and micro-batches may cut the batch up."""
    cut_up = Plan((2,), equal_shares((2,)), micro_batches=2)
    with pytest.raises(UserError, match="bn1 normalises over the whole batch"):
        compile_all(network(), cut_up, BATCH)
    with pytest.raises(UserError, match="bn2 normalises over the whole batch"):
        compile_all(freeze(network(), "bn1"), cut_up, BATCH)
    model = freeze(network(), "bn*")
    check(compile_all(model, cut_up, BATCH))
    alone = preset("data", model, (1,))
    reference = run_ranks(1, lambda comm: train(comm, alone, model=model, steps=2))
    found = run_ranks(2, lambda comm: train(comm, cut_up, model=model, steps=2))
    compare(found, reference, 1e-12)


def test_what_is_left_out() -> None:
    model = freeze(network(), "conv*,bn*")
    plan = preset("data", model, (3,), ((1, 1, 1),), "a", "sharded")
    program = compile(model, plan, BATCH, 0, SMALL)
    back = [op for op in program.ops if isinstance(op, Backward)]
    assert [op.call.name for op in back] == ["fc5", "relu4", "fc4", "drop3", "relu3", "fc3"]
    assert back[-1].dx == (None,) and not back[-1].call.need_dx
    assert all(not name.startswith(("conv", "bn")) for name in program.grads)
    travelling = {op.name for op in program.ops if isinstance(op, Start)}
    travelling |= {name for op in program.ops if isinstance(op, Sum) for name in op.names}
    assert travelling and not any(name.startswith(("conv", "bn")) for name in travelling)
    costs = {c.name: c for c in step_costs(program, 4)}
    free = compile(network(), plan, BATCH, 0, SMALL)
    before = {c.name: c for c in step_costs(free, 4)}
    for name in ("conv1", "conv2", "bn1", "bn2"):
        assert not any(costs[name].work.bytes_sent) and not any(costs[name].work.messages)
        assert all(before[name].work.bytes_sent)
    # forward alone: conv1 had dw too, conv2 dw and dx
    flops, once = before["conv1"].work.flops, costs["conv1"].work.flops
    np.testing.assert_array_equal(once * 2, flops)
    flops, once = before["conv2"].work.flops, costs["conv2"].work.flops
    np.testing.assert_array_equal(once * 3, flops)
    # below what learns dx is made, and no dw
    costs = {
        c.name: c for c in step_costs(compile(freeze(network(), "conv2"), plan, BATCH, 0, SMALL), 4)
    }
    np.testing.assert_array_equal(costs["conv2"].work.flops * 3, flops * 2)
    assert not any(costs["conv2"].work.bytes_sent)


def test_the_plan_table_says_what_is_frozen() -> None:
    model = freeze(network(), "conv*,bn*")
    text = plan_table(model, preset("data", model, (3,)), BATCH)
    whole = sum(int(np.prod(p.shape)) for p in model.param_specs().values())
    frozen = 6 * 27 + 12 + 9 * 2 * 6 + 18
    assert f", {frozen:,} of {whole:,} parameters frozen" in text.splitlines()[0]
    assert ", frozen" not in plan_table(network(), preset("data", network(), (3,)), BATCH)


def test_stages_are_cut_by_what_is_left_to_do() -> None:
    layers = [("flat", Flatten())]
    for n in range(4):
        layers += [(f"fc{n}", Linear(64)), (f"relu{n}", ReLU())]
    model = Model("even", (1, 8, 8), (*layers, ("last", Linear(64))))
    assert cut(model, 2) == ("fc2",)
    # three frozen layers cost as much as one that learns
    assert cut(freeze(model, "fc[0123]"), 2) == ("fc3",)


def test_graphs_learn_above_a_frozen_fork() -> None:
    model = Model(
        "fork",
        (3, 9, 7),
        (
            ("conv1", Conv(4, 3, padding=1)),
            ("conv2", Conv(4, 3, padding=1)),
            ("conv3", Conv(4, 1), ("conv1",)),
            ("add", Add(), ("conv2", "conv3")),
            ("flat", Flatten()),
            ("fc", Linear(5)),
        ),
    )
    frozen = freeze(model, "conv1,conv3")
    ops = compile(frozen, preset("data", frozen, (1,)), 4).ops
    back = [op.call.name for op in ops if isinstance(op, Backward)]
    assert back == ["fc", "flat", "add", "conv2"]
    assert (
        next(op for op in ops if isinstance(op, Backward) and op.call.name == "add").dx[1] is None
    )
