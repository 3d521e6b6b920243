"""Plans as data: presets, files, what is refused, and the table that is printed."""

import re
from dataclasses import replace

import pytest

from mpicnn import models
from mpicnn.division.compile import compile
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.planfile import load_plan, parse_plan, plan_toml
from mpicnn.division.presets import PRESETS, preset
from mpicnn.division.propagation import check_batch, propagate
from mpicnn.errors import UserError
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.table import plan_table
from mpicnn.settings.plan_groups import PlanChoice

MODEL = models.load("cuda-convnet", (3, 32, 32), 10)


def plan_of(text, ranks=3, **asked):
    return parse_plan(text, "my.toml", PlanChoice(**asked), MODEL, ranks)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("grid, shares", [((3,), ((2, 1, 0),)), ((2, 2), ((1, 3), (1, 1)))])
def test_a_written_plan_reads_back_as_the_same_division(name, grid, shares):
    plan = preset(name, MODEL, grid, shares, sync="sharded")
    again = plan_of(plan_toml(plan), plan.ranks)
    assert propagate(MODEL, again) == propagate(MODEL, plan)
    assert (again.scheme, again.sync, again.grid) == (plan.scheme, plan.sync, plan.grid)


def test_a_file_starts_from_a_preset_and_changes_layers():
    plan = plan_of(
        'preset = "data"\nshares = [2, 1, 1]\n[layers.conv2]\nsplit = "o"\nshares = [3, 0, 1]'
    )
    choices = propagate(MODEL, plan)
    assert choices["conv1"].split == "n" and choices["conv1"].shares == ((2.0, 1.0, 1.0),)
    assert choices["conv2"].split == "o" and choices["conv2"].shares == ((3.0, 0.0, 1.0),)
    # What follows a layer divided by channels stays so until a layer needs all channels.
    following = [name for name, _ in MODEL.layers].index("conv2") + 1
    assert choices[MODEL.layers[following][0]].split == "c"


def test_the_input_is_read_as_the_first_layer_wants_it():
    assert propagate(MODEL, preset("data", MODEL, (2,)))["input"].split == "n"
    assert propagate(MODEL, preset("filter", MODEL, (2,)))["input"].split == "r"
    assert propagate(MODEL, preset("master-worker", MODEL, (2,)))["input"].split == "m"


@pytest.mark.parametrize(
    "text, message",
    [
        ("preset = ", "not valid TOML"),
        ('preset = "owl"', "preset = 'owl', expected data"),
        ('preset = "fc-output"\nscheme = "b"', "plan fc-output takes the batch at once"),
        ("schema = 1", "unknown key 'schema'; expected name, preset"),
        ("scheme = 1", "scheme = 1, expected text"),
        ('scheme = "d"', "scheme 'd' is not one of a, b, c"),
        ('sync = "never"', "sync 'never'"),
        ("grid = [4]", "made for a grid of 4 ranks, this run has 3"),
        ("shares = [1, 1]", "2 shares given, expected one for each of 3 ranks"),
        ("shares = [1, -1, 1]", "shares 1,-1,1 must be finite"),
        ("shares = [0, 0, 0]", "not all 0"),
        ("shares = [1, nan, 1]", "must be finite"),
        ('shares = ["a", 1, 1]', "expected a number per rank"),
        ('[layers.conv9]\nsplit = "n"', "has no such layer; it has conv1"),
        ('[layers.conv1]\nsplit = "x"', "split 'x' is not possible; expected 1 letter"),
        ('[layers.conv1]\nsplit = "no"', "expected 1 letter"),
        ('[layers.conv1]\nhome = "away"', "home 'away'"),
        ("[layers.relu1]\nshares = [1, 1, 1]", "needs split"),
        ("[layers]\nconv1 = 3", "expected a table"),
        ('[layers.loss]\nsplit = "c"', "split 'c' is not possible"),
    ],
)
def test_wrong_plan_files_are_refused(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")) as error:
        propagate(MODEL, plan_of(text))
    assert "\n" not in str(error.value) and re.match("plan (my|fc-output)", str(error.value))


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="plan nowhere.toml: cannot be read"):
        load_plan(PlanChoice(plan="nowhere.toml"), MODEL, 2)


def test_more_ranks_than_columns_needs_explicit_idlers():
    with pytest.raises(
        UserError, match=r"fc\w*\.w of shape \(10, \d+\) cannot be shared: 10 items"
    ):
        compile(MODEL, preset("owt", MODEL, (11,)), 22)
    idle = ((1.0,) * 10 + (0.0,),)
    compile(MODEL, preset("owt", MODEL, (11,), idle), 22)


def test_a_batch_smaller_than_its_ranks_is_refused():
    with pytest.raises(UserError, match="batch 3: fewer examples than the 4 ranks"):
        check_batch(MODEL, preset("data", MODEL, (4,)), 3)
    check_batch(MODEL, preset("data", MODEL, (4,), ((1, 1, 1, 0),)), 3)
    check_batch(MODEL, preset("master-worker", MODEL, (4,)), 1)
    with pytest.raises(UserError, match="than the 4 ranks"):
        check_batch(MODEL, preset("owt", MODEL, (2, 2)), 3)


def test_rounds_need_fully_connected_layers_and_a_divided_batch():
    convolutions = models.Model(
        "none", (1, 4, 4), (("conv1", models.entry.Conv(3, 4)), ("flat", models.entry.Flatten()))
    )
    with pytest.raises(UserError, match=r"scheme \(b\) feeds fully connected layers"):
        propagate(convolutions, preset("data", convolutions, (2,), scheme="b"))
    with pytest.raises(UserError, match=r"scheme \(c\) needs the layers before"):
        compile(MODEL, preset("master-worker", MODEL, (2,), scheme="c"), 8)


def test_a_stage_that_cuts_the_fully_connected_layers_up_is_told_from_a_wrong_division():
    model = models.load("lenet5", (1, 32, 32), 10)
    plan = replace(preset("owt", model, (2,), scheme="b"), stages=("fc4",))
    with pytest.raises(UserError, match=r"scheme \(b\) needs all fully .* begins at fc4; begin it"):
        compile(model, plan, 8, stage=1)


def test_groups_cannot_divide_their_inputs():
    model = models.load("alexnet", (3, 224, 224), 10)
    plan = Plan((2,), equal_shares((2,)), {"conv2": LayerPlan("c")})
    with pytest.raises(UserError, match="layer conv2: a convolution in groups"):
        compile(model, plan, 2)
    model = models.Model("blocks", (6,), (("fc1", models.entry.Linear(4, groups=2)),))
    for split in "noc":
        plan = Plan((2,), equal_shares((2,)), {"fc1": LayerPlan(split)})
        if split != "c":
            compile(model, plan, 2)
            continue
        line = "layer fc1: a fully connected layer in groups cannot divide its inputs; use split n"
        with pytest.raises(UserError, match=line):
            compile(model, plan, 2)


def test_costs_add_up_over_the_ranks():
    batch = 24
    costs = step_costs(compile(MODEL, preset("data", MODEL, (1,)), batch), 4)
    alone = sum(c.work.flops for c in costs)
    weights = {n: p.shape for n, p in MODEL.param_specs().items() if n.endswith(".w")}
    shapes = MODEL.shapes
    by_hand = 0
    for index, (name, layer) in enumerate(MODEL.layers):
        if layer.kind == "contraction":
            shape = weights[f"{name}.w"]
            out = shapes[index + 1]
            pixels = out[1] * out[2] if len(out) == 3 else 1
            passes = 2 if name == "conv1" else 3
            size = 1
            for n in shape:
                size *= n
            by_hand += passes * 2 * batch * size * pixels
    assert alone == by_hand
    for name in PRESETS:
        plan = preset(name, MODEL, (4,), ((3, 1, 2, 2),))
        costs = step_costs(compile(MODEL, plan, batch), 4)
        assert sum(c.work.flops.sum() for c in costs) == alone


def test_owt_sends_less_than_data_parallelism_and_holds_a_part_of_the_fc_weights():
    model = models.load("alexnet-owt", (3, 224, 224), 1000)
    sent, held = {}, {}
    for name in ("data", "owt"):
        costs = step_costs(compile(model, preset(name, model, (4,)), 512), 4)
        sent[name] = sum(c.work.bytes_sent[1] for c in costs)
        held[name] = sum(c.held[1] for c in costs if c.name.startswith("fc"))
    # Convolutions' gradients, and the activations of 128 examples per rank at three boundaries.
    assert sent["owt"] < sent["data"] / 5
    assert held["owt"] == pytest.approx(held["data"] / 4, rel=0.01)


def test_a_program_does_not_grow_with_the_ranks():
    model = models.load("alexnet-owt", (3, 224, 224), 1000)
    for name in ("data", "owt", "filter"):
        few, many = (compile(model, preset(name, model, (n,)), 1024) for n in (4, 50))
        assert [type(op) for op in many.ops] == [type(op) for op in few.ops]
        sums = [sum(c.work.flops.sum() for c in step_costs(whole, 4)) for whole in (few, many)]
        assert sums[0] == sums[1]


def test_the_table_names_every_divided_layer_and_rank():
    table = plan_table(MODEL, preset("owt", MODEL, (2,), ((3, 1),)), 64)
    lines = table.splitlines()
    assert "cuda-convnet under plan owt on 2 rank(s), batch 64" in lines[0]
    last = [line for line in lines if line.startswith("fc")][-1]
    assert " o " in last and "8+2" in last
    assert sum(line.startswith(("0 ", "1 ")) for line in lines) == 2
