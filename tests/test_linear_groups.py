"""Fully connected layers of restricted connectivity: a block-diagonal matrix, however divided."""

from itertools import pairwise

import numpy as np
import pytest
from backends import host
from random_cases import Case, compare_with_one_rank

from mpicnn.division.compile import compile
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import preset
from mpicnn.forecast.cost import step_costs
from mpicnn.layers import Context, Conv, Flatten, Linear, ReLU
from mpicnn.models import Model

rng = np.random.default_rng(11)


def part_of(channels, **more):
    """Return the circumstances of 6 examples with some of a layer's outputs."""
    return Context(True, 4, 1, 2, 6, np.arange(6), channels, **more)


def given(ops, layer, inputs):
    """Return parameters, x and dy of a layer, by chance."""
    p = {
        name: ops.xp.asarray(rng.standard_normal(param.shape))
        for name, param in layer.params((inputs,)).items()
    }
    x = ops.xp.asarray(rng.standard_normal((6, inputs)))
    return p, x, ops.xp.asarray(rng.standard_normal((6, layer.o)))


@pytest.mark.parametrize("o, inputs, groups", [(6, 9, 3), (8, 4, 4), (4, 8, 2), (5, 5, 5)])
@pytest.mark.parametrize("bias, joined", [(True, True), (True, False), (False, True)])
def test_is_a_block_diagonal_matrix(ops, o, inputs, groups, bias, joined):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    layer = Linear(o, bias=bias, groups=groups)
    p, x, dy = given(ops, layer, inputs)
    tensors = {name: torch.tensor(host(a), requires_grad=True) for name, a in p.items()}
    tx = torch.tensor(host(x), requires_grad=True)
    matrix = torch.block_diag(*tensors["w"].chunk(groups))
    assert matrix.shape == (o, inputs)
    ty = torch.nn.functional.linear(tx, matrix, tensors.get("b"))
    run = part_of((0, o), joined=joined)
    y, made = layer.forward(ops, x, p, run)
    # sums of up to 9 terms of order 1 in another order
    close = {"rtol": 0, "atol": 1e-13}
    np.testing.assert_allclose(host(y), (ty.relu() if joined else ty).detach(), **close)
    ty.backward(torch.tensor(host(dy)))
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, made), p, run)
    np.testing.assert_allclose(host(dx), tx.grad, **close)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(host(grads[name]), tensor.grad, **close)


def test_gradients_are_added_in_place_to_those_of_earlier_rounds(ops):
    layer = Linear(6, groups=3)
    p, x, dy = given(ops, layer, 9)
    run = part_of((0, 6))
    _, once = layer.backward(ops, dy, layer.tape(x, None, None), p, run)
    total = ops.xp.ones_like(p["w"])
    run.sums = {"w": total}
    _, grads = layer.backward(ops, dy, layer.tape(x, None, None), p, run)
    assert grads["w"] is total
    np.testing.assert_allclose(host(total), host(once["w"]) + 1, rtol=0, atol=1e-13)


@pytest.mark.parametrize("groups", (2, 3, 6))
@pytest.mark.parametrize(
    "bounds", ((0, 1, 12), (0, 0, 5, 12, 12), (0, 4, 8, 12), (0, 3, 7, 11, 12)), ids=str
)
def test_divided_by_outputs(ops, bounds, groups):
    """Shares cut through groups, and some ranks have no output at all."""
    layer = Linear(12, groups=groups)
    p, x, dy = given(ops, layer, 18)
    run = part_of((0, 12))
    y, _ = layer.forward(ops, x, p, run)
    dx, grads = layer.backward(ops, dy, layer.tape(x, None, None), p, run)
    found, sums = {"y": [], "w": [], "b": []}, 0
    for lo, hi in pairwise(bounds):
        rows, run = {name: a[lo:hi] for name, a in p.items()}, part_of((lo, hi))
        found["y"].append(host(layer.forward(ops, x, rows, run)[0]).T)
        part, own = layer.backward(ops, dy[:, lo:hi], layer.tape(x, None, None), rows, run)
        sums = sums + host(part)
        for name, gradient in own.items():
            found[name].append(host(gradient))
    for name, whole in (grads | {"y": y.T}).items():
        np.testing.assert_allclose(np.concatenate(found[name]), host(whole), rtol=0, atol=1e-13)
    np.testing.assert_allclose(sums, host(dx), rtol=0, atol=1e-13)


def blocks(groups):
    """Return a network of a convolution and fully connected layers, all but the last in groups."""
    return Model(
        "blocks",
        (2, 2, 4),
        (
            ("conv", Conv(3, 1)),
            ("flat", Flatten()),
            ("fc1", Linear(12, groups=groups)),
            ("relu1", ReLU()),
            ("fc2", Linear(18, groups=groups, bias=False)),
            ("fc3", Linear(5)),
        ),
    )


@pytest.mark.parametrize(
    "name, scheme",
    [("data", "a"), ("owt", "a"), ("owt", "b"), ("owt", "c"), ("master-worker", "a"),
     ("filter", "a")],
)  # fmt: skip
def test_every_plan_trains_as_one_rank(name, scheme):
    for grid in ((3,), (2, 2)):
        shares = tuple(tuple(rng.choice([1.0, 2.0, 3.0], n)) for n in grid)
        for groups in (2, 6):
            model = blocks(groups)
            plan = preset(name, model, grid, shares, scheme)
            assert not compare_with_one_rank(Case(model, plan, (11, 5)))


def test_inputs_of_groups_are_not_divided():
    plan = Plan((2,), equal_shares((2,)), {"fc2": LayerPlan("c")})
    line = compare_with_one_rank(Case(blocks(2), plan, (11, 5)))
    assert "layer fc2: a fully connected layer in groups cannot divide its inputs" in line


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups_save_their_part_of_arithmetic_weights_and_bytes(groups):
    """Of fc1, which has 24 inputs and 12 outputs; a bias is no smaller."""
    costs = {}
    for each in (1, groups):
        program = compile(blocks(each), preset("data", blocks(each), (2,)), 8)
        costs[each] = {cost.name: cost for cost in step_costs(program, 4)}["fc1"]
    whole, less = costs[1], costs[groups]
    np.testing.assert_allclose(less.work.flops * groups, whole.work.flops)
    assert (whole.held - 12 == groups * (less.held - 12)).all()
    # an all-reduce between 2 ranks sends what there is once
    np.testing.assert_allclose(less.work.bytes_sent, 4 * (24 * 12 / groups + 12))
