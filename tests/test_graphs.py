"""Networks whose layers read any earlier ones: what they say of themselves, and how they train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import host
from oracle import run_ranks
from random_cases import SMALL, alone, compare_with_one_rank, draw, refusal, train

from mpicnn.division.branches import branches, owners
from mpicnn.division.compile import compile
from mpicnn.division.operations import Accumulate, Forward, Free, Loss, Receive, Send, Start, Wait
from mpicnn.division.placement import local_shape
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.layers import (
    Add,
    Concat,
    Context,
    Conv,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Multiply,
    ReLU,
)
from mpicnn.models import Model, load

IMAGE = (2, 6, 5)
END = (("pool", GlobalAvgPool()), ("flat", Flatten()), ("fc", Linear(5)))
RESIDUAL = (
    ("conv1", Conv(4, 3, padding=1)),
    ("conv2", Conv(4, 3, padding=1)),
    ("relu2", ReLU()),
    ("conv3", Conv(4, 3, padding=1)),
    ("add", Add(), ["conv3", "conv1"]),
    ("relu3", ReLU()),
    *END,
)  # fmt: skip
TOML = """
[[layer]]
name = "conv1"
type = "conv"
o = 4
kernel = 3
[[layer]]
name = "relu1"
type = "relu"
[[layer]]
type = "concat"
inputs = ["relu1", "conv1"]
[[layer]]
type = "globalavgpool"
[[layer]]
name = "gate"
type = "conv"
o = 8
kernel = 1
[[layer]]
type = "multiply"
inputs = ["concat1", "gate"]
[[layer]]
type = "globalavgpool"
[[layer]]
type = "flatten"
[[layer]]
type = "linear"
o = "classes"
"""


def model(*layers: Any, image: tuple[int, ...] = IMAGE) -> Model:
    return Model("graph", image, layers)


def test_a_network_says_what_each_layer_reads_and_reads_itself_back(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML)
    mine = load(path, IMAGE, 5)
    assert mine.sources == ((0,), (1,), (2, 1), (3,), (4,), (3, 5), (6,), (7,), (8,))
    described = json.loads(json.dumps(mine.describe()))
    assert [item.get("inputs") for item in described[2:6]] == [
        ["relu1", "conv1"], None, None, ["concat1", "gate"],
    ]  # fmt: skip
    assert Model.from_description("mine", IMAGE, described) == mine
    path.write_text(mine.to_toml())
    assert load(path, IMAGE, 5) == mine


def test_a_python_file_names_inputs_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from mpicnn.layers import *\n"
        "def model(shape, classes):\n"
        "    yield 'conv1', Conv(shape[0], 3, padding=1)\n"
        "    yield 'add1', Add(), ('conv1', 'input')\n"
        "    yield 'flat', Flatten()\n"
        "    yield 'fc2', Linear(classes)\n"
    )
    assert load(path, IMAGE, 5).sources == ((0,), (1, 0), (2,), (3,))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((("add", Add(), ["conv9", "input"]), *END), "layer add: reads 'conv9', expected the name"),
        ((("add", Add(), ["fc", "input"]), *END), "layer add: reads fc, which comes after it"),
        ((("add", Add(), ["add", "input"]), *END), "layer add: reads add, which comes after it"),
        ((("add", Add()), *END), r"reads 1 layer\(s\), but Add takes two inputs or more"),
        ((("relu", ReLU(), ["input", "input"]), *END), r"reads 2 layer\(s\), but ReLU takes one"),
        ((("conv", Conv(3, 1)), ("relu", ReLU(), ["input"]), *END), "layer conv: no layer reads"),
        (
            (("conv", Conv(3, 1)), ("add", Add(), ["conv", "input"]), *END),
            r"layer add: Add: the inputs have shapes \(3, 6, 5\) and \(2, 6, 5\); expected one",
        ),
        (
            (("conv", Conv(3, 2)), ("cat", Concat(), ["conv", "input"]), *END),
            "layer cat: Concat: .* expected shapes that differ in channels alone",
        ),
        (
            (("conv", Conv(3, 1)), ("gate", Multiply(), ["input", "conv"]), *END),
            "layer gate: Multiply: .* expected two, the second",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_layer(layers: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        model(*layers)
    assert "\n" not in str(caught.value)


def test_inputs_that_are_no_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TOML.replace('["relu1", "conv1"]', "[1, 2]"))
    with pytest.raises(UserError, match=r"layer 3 \(concat1\): inputs \[1, 2\], expected names"):
        load(path, IMAGE, 5)


def test_the_head_begins_where_one_value_feeds_fully_connected_layers_alone() -> None:
    excited = model(
        ("conv1", Conv(4, 3)),
        ("squeeze", GlobalAvgPool()),
        ("flat0", Flatten()),
        ("fc0", Linear(4)),
        ("pooled", GlobalAvgPool(), ["conv1"]),
        ("flat1", Flatten()),
        ("gate", Multiply(), ["flat1", "fc0"]),
        ("fc2", Linear(5)),
    )  # fmt: skip
    assert excited.layers[excited.fc_start][0] == "fc2"
    assert model(*RESIDUAL).layers[model(*RESIDUAL).fc_start][0] == "flat"


@pytest.mark.parametrize("seed", range(60))
def test_a_random_graph_trains_as_one_rank_or_is_refused_in_one_line(seed: int) -> None:
    compare_with_one_rank(draw(seed, graph=True))


def test_most_random_graphs_are_accepted() -> None:
    assert sum(bool(refusal(draw(seed, graph=True))) for seed in range(60)) < 30


def operations(plan: Plan, stage: int = 0) -> tuple[Any, ...]:
    return compile(model(*RESIDUAL), plan, 8, stage, SMALL).ops


def test_a_value_is_moved_once_for_all_that_want_it_so() -> None:
    """Their gradients are added before they travel back."""
    layers = (
        ("conv1", Conv(4, 3)),
        ("left", Conv(3, 1), ["conv1"]),
        ("right", Conv(3, 1), ["conv1"]),
        ("add", Add(), ["left", "right"]),
        *END,
    )
    plan = Plan((2,), equal_shares((2,)), {n: LayerPlan("o") for n in ("left", "right")})
    ops = compile(model(*layers), plan, 8, 0, SMALL).ops
    moved = [op.name for op in ops if isinstance(op, Start) and op.name in ("left", "right")]
    assert moved == ["left", "left"]  # there, and the gradient's way back
    assert sum(isinstance(op, Accumulate) for op in ops) == 1


def test_a_skip_passes_through_a_stage_that_does_not_read_it() -> None:
    plan = replace(preset("data", model(*RESIDUAL), (1,)), stages=("conv2", "conv3", "relu3"))
    sent = [[op.number for op in operations(plan, s) if isinstance(op, Send)] for s in range(4)]
    received = [
        [op.number for op in operations(plan, s) if isinstance(op, Receive)] for s in range(4)
    ]
    assert sent[0] == [1] and received[1] == [1, 3, 1]
    assert sent[1] == [1, 3, 1] and sorted(sent[2]) == [1, 3, 5]
    case = replace(draw(0), model=model(*RESIDUAL), plan=replace(plan, micro_batches=3))
    case.batches = (7, 4)
    compare_with_one_rank(case)


def inception(before: str, number: int) -> list[Any]:
    """Return four branches of unlike length and what joins them."""
    a, b, c, d = (f"{letter}{number}" for letter in "abcd")
    return [
        (a, Conv(4, 1), [before]),
        (f"{b}-reduce", Conv(3, 1), [before]),
        (b, Conv(5, 3, padding=1)),
        (f"{c}-reduce", Conv(2, 1), [before]),
        (c, Conv(3, 5, padding=2)),
        (f"pool{number}", MaxPool(3, 1, padding=1), [before]),
        (d, Conv(3, 1)),
        (f"join{number}", Concat(), [a, b, c, d]),
    ]


BRANCHED = model(
    ("stem", Conv(6, 3, padding=1)), *inception("stem", 1), *inception("join1", 2), *END,
    image=(2, 9, 8),
)  # fmt: skip
TOWERS = model(
    ("left", Conv(3, 3), ["input"]), ("left2", Conv(3, 1)), ("right", Conv(2, 3), ["input"]),
    ("join", Concat(), ["left2", "right"]), *END,
)  # fmt: skip


def test_branches_hang_together_and_are_shared_out_by_their_work() -> None:
    assert branches(TOWERS) == [[[0, 1], [2]]]
    assert [[len(b) for b in place] for place in branches(BRANCHED)] == [[1, 2, 2, 2]] * 2
    assert branches(model(*RESIDUAL)) == []  # the other way round the sum has no layers
    assert owners(TOWERS, 2) == {"left": 0, "left2": 0, "right": 1}
    found = owners(BRANCHED, 3)
    assert found["b1"] == found["b1-reduce"] == 1 and found["c1"] == 0
    assert {found[name] for name in ("a1", "d1")} == {2}
    with pytest.raises(UserError, match="plan branches: graph has none"):
        preset("branches", model(*RESIDUAL), (2,))


@pytest.mark.parametrize("grid", [(2,), (3,), (2, 2)])
@pytest.mark.parametrize("network", [BRANCHED, TOWERS], ids=["inception", "towers"])
def test_branches_on_ranks_of_their_own_train_as_one_rank(
    network: Model, grid: tuple[int, ...]
) -> None:
    plan = preset("branches", network, grid, sync="sharded")
    compare_with_one_rank(replace(draw(0), model=network, plan=plan, batches=(11, 5)))


def test_branches_compute_side_by_side() -> None:
    """A rank begins its own branch without waiting for the end of another rank's."""
    plan = preset("branches", TOWERS, (2,))
    ops = compile(TOWERS, plan, 8, 0, SMALL).ops
    begun: set[str] = set()
    for op in ops:
        if isinstance(op, Forward) and op.call.name == "right":
            break
        if isinstance(op, Wait):
            begun.add(op.name)
    assert begun == {"left", "right"}  # what enters the branches, and nothing that leaves them
    weights = compile(TOWERS, plan, 8).weights
    rows = {w.name: local_shape(w.param.shape, w.home, (1,))[0] for w in weights}
    assert (rows["left.w"], rows["right.w"]) == (0, 2)  # a rank holds its own branch only


def test_an_owner_must_be_there() -> None:
    for split, message in (("m@2", "there is no rank 2 among 2"), ("n@1", "n has no owner")):
        plan = Plan((2,), equal_shares((2,)), {"left": LayerPlan(split)})
        with pytest.raises(UserError, match=f"layer left: split '{split}': {message}"):
            compile(TOWERS, plan, 8)


def test_inference_keeps_nothing_for_a_backward_pass() -> None:
    program = compile(model(*RESIDUAL), preset("data", model(*RESIDUAL), (1,)), 8).at((0,))
    assert all(op.saved is None for op in program.forward if isinstance(op, Forward))
    assert {Forward, Free, Loss} == {type(op) for op in program.forward}


@pytest.mark.mpi
def test_a_graph_trains_as_one_rank_over_mpi(subcomm: Any) -> None:
    comm = subcomm(2)
    case = replace(draw(0), model=model(*RESIDUAL), batches=(9, 4))
    for name, scheme in (("owt", "c"), ("filter", "a")):
        case.plan = preset(name, case.model, (2,), ((2.0, 1.0),), scheme, "sharded")
        losses = train(comm, case, case.plan)[0]
        expected = run_ranks(1, lambda one, case=case: train(one, case, alone(case)))[0][0]
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


JOINS = [
    (Add(), [(3, 2, 4)] * 2),
    (Add(), [(5,)] * 3),
    (Multiply(), [(3, 2, 4)] * 2),
    (Multiply(), [(3, 2, 4), (3, 1, 1)]),
    (Concat(), [(3, 2, 4), (1, 2, 4), (2, 2, 4)]),
    (Concat(), [(4,), (3,)]),
]


@pytest.mark.parametrize(("layer", "shapes"), JOINS, ids=str)
def test_gradients_of_joins_by_differences(ops: Any, layer: Any, shapes: Any) -> None:
    n, step = 3, 1e-6
    rng = np.random.default_rng(2)
    xs = [rng.standard_normal((n, *shape)) for shape in shapes]
    out = layer.out_shape(tuple(shapes))
    run = Context(True, 0, 0, 0, n, np.arange(n), (0, out[0]))
    dy = rng.standard_normal((n, *out))

    def lost(arrays: Any) -> float:
        y, _ = layer.forward(ops, [ops.xp.asarray(x) for x in arrays], {}, run)
        return float((host(y) * dy).sum())

    there = [ops.xp.asarray(x) for x in xs]
    y, made = layer.forward(ops, there, {}, run)
    assert y.shape == (n, *out)
    found, grads = layer.backward(ops, ops.xp.asarray(dy), layer.tape(there, y, made), {}, run)
    assert grads == {} and [dx.shape for dx in found] == [x.shape for x in xs]
    for at, (x, dx) in enumerate(zip(xs, found, strict=True)):
        for index in [tuple(rng.integers(size) for size in x.shape) for _ in range(4)]:
            sides = []
            for sign in (1, -1):
                moved = x.copy()
                moved[index] += sign * step
                sides.append(lost([*xs[:at], moved, *xs[at + 1 :]]))
            slope = (sides[0] - sides[1]) / (2 * step)
            # the products' differences round at 1e-16 / step
            assert host(dx)[index] == pytest.approx(slope, rel=1e-6, abs=1e-8)
