"""Letter g: ranks divide the groups of a layer, and need nothing of each other's channels."""

from itertools import pairwise

import numpy as np
import pytest
from backends import host
from random_cases import Case, compare_with_one_rank, refusal

from mpicnn import models
from mpicnn.division.compile import compile, compile_all
from mpicnn.division.idle import leave_idle
from mpicnn.division.placement import Split
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import preset
from mpicnn.division.verify import check
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.table import plan_table
from mpicnn.layers import Context, Conv, Flatten, GlobalAvgPool, Linear, ReLU
from mpicnn.models import Model

rng = np.random.default_rng(13)


def towers(groups, conv=True):
    """Return a network of layers in groups that are read by layers in as many groups."""
    body = [("conv1", Conv(12, 1)), ("conv2", Conv(24, 3, padding=1, groups=groups)),
            ("relu2", ReLU()), ("conv3", Conv(6 * groups, 2, groups=groups)),
            ("pool3", GlobalAvgPool())]  # fmt: skip
    return Model(
        "towers",
        (2, 4, 5),
        (
            *(body if conv else [("conv1", Conv(3, 1))]),
            ("flat", Flatten()),
            ("fc4", Linear(4 * groups, groups=groups)),
            ("relu4", ReLU()),
            ("fc5", Linear(6 * groups, groups=groups)),
            ("fc6", Linear(5)),
        ),
    )


def plan(grid, shares=None, names=("conv2", "conv3", "fc4", "fc5"), scheme="a", letter="g"):
    """Return a plan by which these layers divide their groups along the last axis."""
    outer = "n" * (len(grid) - 1)
    layers = {name: LayerPlan(outer + letter) for name in names} | {"conv1": LayerPlan(outer + "n")}
    return Plan(grid, shares or equal_shares(grid), layers, scheme)


@pytest.mark.parametrize("grid", [(1,), (2,), (3,), (2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("groups", [3, 4])
def test_trains_as_one_rank(grid, groups):
    """With equal shares, unequal ones, and a rank that has none."""
    for last in ([1.0] * grid[-1], rng.choice([1.0, 2.0, 3.0], grid[-1]), [0.0, 1.0, 1.0]):
        if len(last) == grid[-1]:
            shares = (*equal_shares(grid[:-1]), tuple(map(float, last)))
            case = Case(towers(groups), plan(grid, shares), (11, 5))
            assert not compare_with_one_rank(case), shares


@pytest.mark.parametrize("scheme", "bc")
@pytest.mark.parametrize("grid", [(3,), (2, 2)], ids=str)
def test_trains_as_one_rank_in_rounds(grid, scheme):
    made = plan(grid, names=("fc4", "fc5"), scheme=scheme)
    assert not compare_with_one_rank(Case(towers(4, conv=False), made, (12, 5)))


@pytest.mark.parametrize("bounds", ((0, 1, 3), (0, 0, 2, 3), (0, 1, 2, 3, 3)), ids=str)
@pytest.mark.parametrize(
    "layer, shape",
    [(Linear(6, groups=3), (9,)), (Linear(12, groups=3, bias=False), (3,)),
     (Conv(6, (3, 2), (2, 1), 1, groups=3), (9, 5, 4)), (Conv(3, 3, groups=3), (3, 4, 4))],
    ids=str,
)  # fmt: skip
def test_groups_need_their_own_inputs_alone(ops, layer, shape, bounds):
    """Bounds count groups; ranks without any have arrays without channels."""
    p = {
        name: ops.xp.asarray(rng.standard_normal(spec.shape))
        for name, spec in layer.params(shape).items()
    }
    x = ops.xp.asarray(rng.standard_normal((6, *shape)))

    def run(lo, hi, x, p, dy=None):
        context = Context(True, 4, 1, 2, 6, np.arange(6), (lo, hi))
        y, made = layer.forward(ops, x, p, context)
        dy = y if dy is None else dy
        return y, *layer.backward(ops, dy, layer.tape(x, y, made), p, context)

    y, dx, grads = run(0, layer.o, x, p)
    for lo, hi in pairwise(bounds):
        o = slice(*(at * layer.o // 3 for at in (lo, hi)))
        c = slice(*(at * shape[0] // 3 for at in (lo, hi)))
        rows = {name: a[o] for name, a in p.items()}
        found = run(o.start, o.stop, x[:, c], rows, y[:, o])
        # sums of up to a few dozen terms of order 1 in another order
        close = {"rtol": 0, "atol": 1e-12}
        np.testing.assert_allclose(host(found[0]), host(y[:, o]), **close)
        np.testing.assert_allclose(host(found[1]), host(dx[:, c]), **close)
        for name, gradient in grads.items():
            np.testing.assert_allclose(host(found[2][name]), host(gradient[o]), **close)


def test_nothing_travels_between_layers_of_the_same_groups():
    """fc4 gets its groups' inputs, fc6 sends what is left to sum; under o each needs everything."""
    model, batch = towers(4, conv=False), 16
    sent = {}
    for letter in "og":
        made = plan((4,), names=("fc4", "fc5"), letter=letter)
        programs = compile_all(model, made, batch)
        check(programs)
        sent[letter] = {cost.name: cost.work for cost in step_costs(programs[0], 4)}
    assert sent["g"]["fc5"].bytes_sent.sum() == 0 < sent["o"]["fc5"].bytes_sent.min()
    # of 60 features of 4 examples each rank sends all but its own quarter: once, not thrice
    inputs = 4 * (batch // 4) * 60
    np.testing.assert_allclose(sent["g"]["fc4"].bytes_sent, 2 * inputs * 3 / 4)
    np.testing.assert_allclose(sent["o"]["fc4"].bytes_sent, 2 * 3 * inputs)
    for name in ("fc4", "fc5"):
        np.testing.assert_allclose(sent["g"][name].flops, sent["o"][name].flops)


def test_shares_are_whole_groups():
    program = compile(towers(4), plan((3,), ((2.0, 1.0, 1.0),)), 8)
    use = {w.name: w.use for w in program.weights}
    assert use["conv2.w"] == (Split(0, (0, 12, 18, 24)),)
    assert use["fc5.b"] == (Split(0, (0, 12, 18, 24)),)
    lines = plan_table(towers(4), plan((3,), ((2.0, 1.0, 1.0),)), 8).splitlines()
    (line,) = [line for line in lines if line.startswith("fc5")]
    assert line.split()[1:3] == ["g", "2+1+1"]


def test_more_ranks_than_groups_leave_ranks_idle():
    made = plan((4,))
    assert "3 items cannot give 4 ranks 1 each" in refusal(Case(towers(3), made, (12, 5)))
    limited, idle = leave_idle(towers(3), made, 12)
    assert idle["conv2"] == idle["fc5"] == 1
    assert not compare_with_one_rank(Case(towers(3), limited, (12, 5)))


def test_depthwise_convolutions_leave_channels_where_they_are():
    """mobilenet-v2's expanding convolutions by output, its depthwise ones by groups."""
    model = models.load("mobilenet-v2", (3, 64, 64), 10)
    layers = {
        name: LayerPlan("g" if layer.groups > 1 else "o")
        for name, layer in model.layers
        if isinstance(layer, Conv)
    }
    made = Plan((2,), equal_shares((2,)), layers)
    programs = compile_all(model, made, 4)
    check(programs)
    sent = {cost.name: cost.work.bytes_sent.sum() for cost in step_costs(programs[0], 4)}
    depthwise = [name for name, each in made.layers.items() if each.split == "g"]
    assert len(depthwise) == 17
    assert all(sent[name] == 0 for name in depthwise[1:])


@pytest.mark.parametrize(
    "grid, split, said",
    [
        ((2,), {"fc6": "g"}, "layer fc6: a fully connected layer of one group cannot divide "
         "groups; use split n, o, c or m"),
        ((2,), {"conv1": "g"}, "layer conv1: a convolution of one group cannot divide groups"),
        ((2,), {"conv2": "c"}, "layer conv2: a convolution in groups cannot divide its input "
         "channels; use split n, o, g or m"),
        ((2, 2), {"fc4": "og"}, "layer fc4: a fully connected layer that divides its groups along "
         "one axis cannot divide channels along the other; use n or m there"),
        ((2, 2), {"conv2": "gg"}, "use n or m there"),
        ((2,), {"relu4": "g"}, "expected 1 letter"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(grid, split, said):
    made = Plan(grid, equal_shares(grid), {name: LayerPlan(to) for name, to in split.items()})
    line = refusal(Case(towers(4), made, (12, 5)))
    assert said in line and "\n" not in line


def test_presets_do_not_use_it():
    """They are for networks of any kind."""
    for name in ("data", "owt", "filter", "master-worker"):
        splits = {each.split for each in preset(name, towers(4), (2,)).layers.values()}
        assert "g" not in splits
