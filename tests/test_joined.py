"""A contraction and the ReLU behind it in one pass: where they are neighbours, and to the bit."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from backends import host
from mpi4py import MPI

from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.operations import (
    Backward,
    Forward,
)
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import PRESETS, preset
from mpicnn.layers import BatchNorm, Conv, Flatten, Linear, MaxPool, ReLU
from mpicnn.models import Model
from mpicnn.ops.window import Window
from mpicnn.step.executor import Executor
from mpicnn.step.state import initial_state

ONE = (1, 1)
# x, w, groups: for every method of the native backend
CONVOLUTIONS = {
    "columns": ((3, 3, 9, 7), (5, 3, 4, 3), 1),
    "columns of one image": ((2, 3, 90, 80), (5, 3, 4, 3), 1),
    "5x5": ((2, 64, 9, 7), (70, 64, 5, 5), 1),
    "3x3": ((2, 64, 9, 7), (70, 64, 3, 3), 1),
    "3x3 of many pixels": ((2, 64, 30, 31), (70, 64, 3, 3), 1),
    "depthwise": ((2, 11, 9, 7), (11, 1, 3, 3), 11),
    "groups": ((2, 6, 9, 7), (4, 3, 3, 3), 2),
    "no inputs": ((2, 0, 9, 7), (4, 0, 3, 3), 1),
    "no examples": ((0, 6, 9, 7), (4, 6, 3, 3), 1),
}
MODEL = Model(
    "joined",
    (3, 11, 9),
    (
        ("conv1", Conv(6, 3, padding=1)),
        ("relu1", ReLU()),
        ("again1", ReLU()),
        ("pool1", MaxPool(2)),
        ("conv2", Conv(7, 3, bias=False)),
        ("relu2", ReLU()),
        ("conv3", Conv(4, 1)),
        ("bn3", BatchNorm()),
        ("relu3", ReLU()),
        ("flat", Flatten()),
        ("fc4", Linear(8)),
        ("relu4", ReLU()),
        ("fc5", Linear(5)),
    ),
)
ALL = {"conv1", "relu1", "conv2", "relu2", "fc4", "relu4"}
COUNT = 6


def draw(ops, *shapes, dtype="float32"):
    rng = np.random.default_rng(5)
    return [ops.xp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in shapes]


def calls(program):
    return [op.call for op in program.ops if isinstance(op, Forward)]


def joined(plan, stage=0):
    """Return the layers that go with another one."""
    return {call.name for call in calls(compile(MODEL, plan, COUNT, stage)) if call.joined}


def divided(grid=(2,), **layers):
    asked = {name: LayerPlan(split) for name, split in layers.items()}
    return Plan(grid, equal_shares(grid), asked)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("x, w, groups", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution(ops, x, w, groups, dtype):
    x, w, b = draw(ops, x, w, w[:1], dtype=dtype)
    for bias in (b, None):
        args = x, w, bias, Window.of(ONE, (2, 1), ONE, groups)
        expected = host(ops.activate("relu", ops.conv2d(*args)))
        np.testing.assert_array_equal(host(ops.conv2d(*args, True)), expected, strict=True)
        assert not x.size or 0 < np.mean(expected > 0) < 1


@pytest.mark.parametrize("n, c, o", ((5, 7, 3), (3, 300, 270), (0, 4, 3), (4, 0, 30), (4, 3, 0)))
def test_linear(ops, n, c, o):
    x, w, b = draw(ops, (n, c), (o, c), (o,))
    for bias in (b, None):
        expected = host(ops.activate("relu", ops.linear(x, w, bias)))
        np.testing.assert_array_equal(host(ops.linear(x, w, bias, True)), expected, strict=True)


@pytest.mark.parametrize("kernel", (3, 4, 5))
@pytest.mark.parametrize("biased", (True, False))
def test_nan_is_not_hidden(ops, kernel, biased):
    x, w, b = draw(ops, (1, 64, 8, 8), (64, 64, kernel, kernel), (64,))
    x[0, 0, 7, 7] = np.nan
    y = ops.conv2d(x, w, b if biased else None, Window.of(ONE, ONE, ONE), True)
    assert np.isnan(host(y))[0, :, -1, -1].all()
    features = x.reshape(1, -1)
    y = ops.linear(features, ops.xp.ones((3, features.shape[1]), "float32"), None, True)
    assert np.isnan(host(y)).all()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("ranks", (1, 3))
def test_presets_join_neighbours(name, ranks):
    # the master gathers what others convolve; sums of divided inputs are pending
    moved = {"master-worker": ALL - {"fc4", "relu4"}, "fc-input": {"fc4", "relu4"}}
    apart = moved.get(name, set()) if ranks > 1 else set()
    assert joined(preset(name, MODEL, (ranks,))) == ALL - apart


def test_a_move_between_them_keeps_them_apart():
    assert joined(divided(conv2="c")) == ALL - {"conv2", "relu2"}  # sums are pending
    assert joined(divided(fc4="c")) == ALL - {"fc4", "relu4"}
    assert joined(divided(conv1="o", relu1="n")) == ALL - {"conv1", "relu1"}
    assert joined(divided(conv1="o", relu1="c")) == ALL
    assert joined(divided((1,), conv2="c")) == ALL  # of one rank the sum is whole


def test_borders_keep_them_apart():
    plan = replace(preset("data", MODEL, (1,)), stages=("relu1", "fc4"))
    assert [joined(plan, stage) for stage in range(3)] == [
        set(), {"conv2", "relu2"}, {"fc4", "relu4"}
    ]  # fmt: skip


class Leaky(ReLU):
    def forward(self, ops, x, p, run):
        return ops.xp.where(x > 0, x, x / 8), x


class Doubled(Linear):
    def forward(self, ops, x, p, run):
        y, saved = super().forward(ops, x, p, run)
        return 2 * y - 1, saved


@pytest.mark.parametrize("pair", [(Linear(4), Leaky()), (Doubled(4), ReLU())])
def test_layers_of_ones_own_are_left_alone(pair):
    layers = (("flat", Flatten()), ("fc1", pair[0]), ("next1", pair[1]))
    model = Model("own", (1, 2, 2), layers)
    program = compile(model, preset("data", model, (1,)), COUNT)
    assert len(calls(program)) == 3 and not any(call.joined for call in calls(program))


def split_up(program):
    """Return the program with a pass of its own for every ReLU."""

    ops = (
        op._replace(call=op.call._replace(joined=False))
        if isinstance(op, Forward | Backward)
        else op
        for op in program.ops
    )
    return replace(program, ops=tuple(ops))


def test_training_has_the_same_bits(ops):
    whole = compile(MODEL, preset("data", MODEL, (1,)), COUNT).at((0,))
    x, labels = draw(ops, (COUNT, *MODEL.input_shape))[0], np.arange(COUNT) % 5
    runner = Executor(Mesh(MPI.COMM_SELF), ops, seed=1)

    def results(program):
        state = initial_state(program.weights, (0,), 1, np.dtype("float32")).on(ops)
        grads, totals = runner.train(program, state, x, labels, 0)
        return {name: host(g) for name, g in grads.items()} | {"totals": totals.read()}

    got, expected = results(whole), results(split_up(whole))
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_pass_is_saved(ops, monkeypatch):
    calls = []

    def counted(name, kernel, *args):
        calls.append(name)
        return kernel(*args)

    for name in ("activate", "activate_dx"):
        monkeypatch.setattr(ops, name, partial(counted, name, getattr(ops, name)))
    test_training_has_the_same_bits(ops)
    # joined, two of the five ReLUs have a pass of their own forward; apart, all have
    assert (calls.count("activate"), calls.count("activate_dx")) == (2 + 5, 5 + 5)
