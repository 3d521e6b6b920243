"""Forecasts for more and more nodes: what is known of them, tables, files and the command."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from functools import lru_cache
from typing import get_args

import mpi_jobs
import numpy as np
import pytest
from test_cluster import EXAMPLE, cluster

from mpicnn import models
from mpicnn.commands.simulate import simulate
from mpicnn.division.compile import compile_all
from mpicnn.division.idle import BATCH, leave_idle
from mpicnn.division.plan import LayerPlan
from mpicnn.division.presets import PRESETS, preset
from mpicnn.division.propagation import check_batch
from mpicnn.division.verify import check
from mpicnn.errors import UserError
from mpicnn.forecast.cluster import Cluster, NodeClass
from mpicnn.forecast.machine import Device, Link
from mpicnn.forecast.scaling import Loss, Question, Simulation, closed
from mpicnn.forecast.scaling_text import (
    as_csv,
    as_table,
    notes,
    read_measured,
    reason,
    rows_of,
    stop,
    values,
)
from mpicnn.models.zoo import made_for
from mpicnn.settings.checks import node_counts, nodes_text
from mpicnn.settings.choices import SimulatedShares
from mpicnn.settings.definitions import parse
from mpicnn.settings.plan_groups import PlanChoice

MODEL = models.load("alexnet-cifar", (3, 32, 32), 10)
SHARES = get_args(SimulatedShares)
PNG = b"\x89PNG"


def question(rng, **changed):
    plan = str(rng.choice([name for name in PRESETS if name != "fc-output"]))
    asked = PlanChoice(plan=plan, sync=str(rng.choice(["allreduce", "sharded"])))
    made = Question(
        MODEL, asked, int(rng.choice([64, 192, 250])), weak=bool(rng.integers(2)),
        shares=str(rng.choice(SHARES)), seed=int(rng.integers(9)),
    )  # fmt: skip
    return replace(made, **changed)


@lru_cache
def studies():
    """Return random questions of random clusters, with points for some numbers of nodes."""
    found = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        simulation = Simulation(question(rng), cluster(rng))
        found.append((seed, simulation, [simulation.point(n) for n in (1, 2, 5, 9)]))
    return found


@pytest.mark.parametrize("plan", ["data", "fc-input", "filter", "owt"])
def test_equal_nodes_with_free_links_are_as_much_faster_as_they_are_more(plan):
    """Where batch and channels can be divided evenly, and the rest takes no time."""
    for shares in SHARES:
        alike = Cluster("x", (NodeClass("a", Device(1e9, 2e9), count=1),), Link(), Link())
        simulation = Simulation(Question(MODEL, PlanChoice(plan=plan), 64, shares=shares), alike)
        # the last layer has 10 neurons: what cannot be divided by 4 and 8 is negligible in others
        points = [simulation.point(n) for n in (1, 2)]
        (one, two) = rows_of(points, points[0])
        assert (one.speedup, one.efficiency) == (1, 1)
        assert two.speedup == pytest.approx(2) and two.efficiency == pytest.approx(1)
    whole = [Simulation(Question(MODEL, PlanChoice(), 64, weak=True), alike).point(n)
             for n in (1, 4, 16)]  # fmt: skip
    for row, nodes in zip(rows_of(whole, whole[0]), (1, 4, 16), strict=True):
        assert row.point.seconds == pytest.approx(whole[0].seconds)
        assert row.speedup == pytest.approx(nodes) and row.efficiency == pytest.approx(1)


def test_unlike_nodes_with_free_links_reach_what_their_speeds_allow():
    """Shares by speed divide the batch of 60 in 3 : 2 : 1 exactly."""
    classes = tuple(NodeClass(f"x{n}", Device(n * 1e9, n * 1e9), count=1) for n in (1, 2, 3))
    made = Cluster("x", classes, Link(), Link())
    asked = Question(MODEL, PlanChoice(), 60)
    points = [Simulation(asked, made).point(n) for n in (1, 3)]
    (_, three) = rows_of(points, points[0])
    assert three.speedup == pytest.approx(6), "the first node is the slowest: all are one each"
    assert three.efficiency == pytest.approx(1)
    points = [Simulation(replace(asked, shares="equal"), made).point(n) for n in (1, 3)]
    assert rows_of(points, points[0])[1].speedup == pytest.approx(3), "as fast as the slowest"


def test_shares_by_speed_suit_devices_that_are_slow_elsewhere_than_in_convolutions():
    fast = Device(1e9, 1e9, memory=1e9)
    classes = (NodeClass("a", fast, count=1), NodeClass("b", replace(fast, memory=1e7), count=1))
    simulation = Simulation(Question(MODEL, PlanChoice(), 4096), Cluster("x", classes, Link()))
    one, two = simulation.point(1), simulation.point(2)
    by_speed = replace(simulation.question, shares="speed")
    better = Simulation(by_speed, simulation.cluster).point(2)
    measured, speed = (row.efficiency for row in rows_of([two, better], one))
    assert measured < 0.7 and 0.95 < speed <= 1


def test_one_node_does_not_use_the_link_between_nodes():
    for seed, simulation, points in studies():
        free = replace(simulation.cluster, between=Link())
        assert Simulation(simulation.question, free).point(1) == points[0], f"seed {seed}"
        ranks = points[0].ranks
        assert ranks > 1 or points[0].communication == 0


def test_times_are_those_of_one_rank():
    for seed, _, points in studies():
        for point in points:
            parts = point.convolution + point.communication + point.other
            assert parts == pytest.approx(point.seconds), f"seed {seed}"
            assert min(point.convolution, point.communication, point.other) >= 0


def test_what_is_lost_and_what_is_not_make_the_step():
    for seed, simulation, points in studies():
        for point in points[1:3]:
            loss = simulation.loss(point.nodes)
            even = point.batch / simulation.question.batch / point.power
            lost = loss.between + loss.inside + sum(loss.uneven.values())
            assert even + lost == pytest.approx(point.seconds), f"seed {seed}"
            assert loss.between >= -1e-12 and loss.inside >= -1e-12
    assert simulation.loss(1).between == 0


def test_slower_links_make_no_step_shorter():
    for seed, simulation, points in studies():
        link = simulation.cluster.between
        slow = replace(simulation.cluster, between=replace(link, bandwidth=link.bandwidth / 3))
        worse = Simulation(simulation.question, slow).point(9)
        assert worse.seconds >= points[-1].seconds * (1 - 1e-12), f"seed {seed}"


def test_csv_and_table_tell_the_same():
    for seed, _, points in studies():
        rows = rows_of(points, points[0], {5: 0.25, 7: 1.0})
        read = list(csv.DictReader(io.StringIO(as_csv(rows))))
        assert [{name: float(text) for name, text in line.items() if text} for line in read] == [
            values(row) for row in rows
        ], f"seed {seed}"
        head, _, *lines = as_table(rows)
        names = {"nodes": "nodes", "step, s": "step_s", "convolution": "convolution_s",
                 "communication": "communication_s", "other": "other_s",
                 "speed-up": "speedup", "images/s": "images_per_s"}  # fmt: skip
        ends = {name: head.index(name) + len(name) for name in names}
        for line, row in zip(lines, read, strict=True):
            for name, column in names.items():
                shown = float(line[: ends[name]].split()[-1])
                assert shown == pytest.approx(float(row[column]), rel=6e-3, abs=6e-3), (
                    f"seed {seed}"
                )
        assert ["measured, s" in head, "0.25" in lines[2], "0.25" in lines[1]] == [
            True,
            True,
            False,
        ]


def test_energy_counts_nodes_while_they_wait():
    made = cluster(np.random.default_rng(5), 2)
    watts = replace(
        made,
        classes=tuple(replace(c, watts=w) for c, w in zip(made.classes, (7.0, 3.0), strict=True)),
    )
    simulation = Simulation(Question(MODEL, PlanChoice(), 64), watts)
    point = simulation.point(5)
    each = [node.watts for node in watts.nodes(5)]
    assert point.joules == pytest.approx(sum(each) * point.seconds) and point.watts == sum(each)
    rows = rows_of([point], point)
    assert "J/step" in as_table(rows)[0] and values(rows[0])["joules"] == point.joules


def points_of(speeds):
    """Return rows with these speed-ups, on 1, 2, 4 … nodes."""
    made = Simulation(Question(MODEL, PlanChoice(), 64), cluster(np.random.default_rng(0))).point(1)
    points = [
        replace(made, nodes=2**at, seconds=1 / speed, power=2.0**at)
        for at, speed in enumerate(speeds)
    ]
    return rows_of(points, points[0])


@pytest.mark.parametrize(
    "speeds, at",
    [([1], 0), ([1, 2, 4], 2), ([1, 2, 2.1, 2.15], 1), ([1, 0.5, 0.4], 0), ([1, 1, 1.05, 3], 3),
     ([1, 1.09, 1.18], 1), ([1, 3, 2.8, 2.9, 2], 1)],
)  # fmt: skip
def test_the_speed_up_stops_where_no_more_nodes_add_a_tenth(speeds, at):
    assert stop(points_of(speeds)) == at


def test_the_reason_is_what_takes_most():
    rows = points_of([1, 2, 2])  # steps of 1, 0.5 and 0.5 s
    said = reason(rows, 1, rows[2], Loss(0.3, 0.05, {"fc6": 0.02, "": 0.01}))
    assert said == (
        "speed-up stops growing at 2 nodes: at 4 the link between nodes takes 0.3 of 0.5 s; "
        "with free links the speed-up there would be 6.67"
    )
    said = reason(rows, 2, rows[2], Loss(0.01, 0.0, {"fc6": 0.2, "": 0.1, "fc7": -0.1}))
    assert said == (
        "speed-up still grows at 4 nodes: computation that is not divided evenly, most in fc6 and "
        "waiting for other ranks, takes 0.2 of 0.5 s"
    )
    assert "the links inside nodes takes" in reason(rows, 1, rows[2], Loss(0.1, 0.2, {"": 0.0}))
    assert reason(rows[:1], 0, rows[0], Loss(0, 0, {"": 0.01})) == (
        "1 node: hardly anything is lost there"
    )


def test_a_master_is_where_the_speed_up_ends_though_links_are_free():
    """Amdahl: what the first rank does alone is not divided (Marques, section 5.3.4)."""
    device = Device(1e9, 1e9, 1e8)
    alike = Cluster("x", (NodeClass("a", device, count=1),), Link(), Link())
    simulation = Simulation(Question(MODEL, PlanChoice(plan="master-worker"), 64), alike)
    points = [simulation.point(n) for n in (1, 2, 4, 8, 16, 32)]
    rows = rows_of(points, points[0])
    most = points[0].seconds / points[0].other
    assert rows[-1].speedup < most and stop(rows) < 5
    said = reason(rows, stop(rows), rows[-1], simulation.loss(32))
    assert "computation that is not divided evenly" in said


@pytest.mark.parametrize("plan", [name for name in PRESETS if name != "fc-output"])
def test_more_ranks_than_items_leave_the_slowest_idle(plan):
    for ranks in (3, 11, 40, 300):
        shares = tuple(float(w) for w in np.random.default_rng(ranks).integers(1, 9, ranks))
        asked = preset(plan, MODEL, (ranks,), (shares,))
        fitting, idle = leave_idle(MODEL, asked, 24)
        check_batch(MODEL, fitting, 24)
        check(compile_all(MODEL, fitting, 24))
        assert (fitting == asked) == (not idle) or ranks == 40
        working = sum(w > 0 for w in fitting.shares[0])
        assert working == min(ranks, 24)
        kept = [w for w, left in zip(shares, fitting.shares[0], strict=True) if left]
        assert sorted(kept) == sorted(shares, reverse=True)[:working][::-1]
        if plan == "owt":
            last = MODEL.layers[-1][0]
            assert idle.get(last, 0) == max(0, ranks - 10) and idle.get(BATCH, 0) == max(
                0, ranks - 24
            )


def test_a_plan_that_fits_stays_as_it_is():
    asked = preset("owt", MODEL, (2, 5), ((3.0, 1.0), (1.0, 0.0, 1.0, 1.0, 1.0)))
    assert leave_idle(MODEL, asked, 24) == (asked, {})
    layers = dict(asked.layers) | {MODEL.layers[-1][0]: LayerPlan("oo")}
    both = replace(asked, layers=layers, grid=(4, 5), shares=((1.0,) * 4, (1.0,) * 5))
    fitting, idle = leave_idle(MODEL, both, 24)
    assert idle == {MODEL.layers[-1][0]: 3}, "10 neurons: 4 parts of 2 or 3, and these in 2"
    check(compile_all(MODEL, fitting, 24))


def test_too_little_memory_is_told():
    made = cluster(np.random.default_rng(2), 1)
    small = replace(made, classes=(replace(made.classes[0], memory=3e7, ranks=2),))
    point = Simulation(Question(MODEL, PlanChoice(), 512), small).point(1)
    needed, has = point.memory["class0"]
    assert has == 3e7 and needed > 2 * 2 * 573_274 * 4, "weights and momentum of two ranks"
    assert "GB of arrays on each class0, which has 0.03 GB" in notes([point])[0]
    plenty = replace(made, classes=(replace(made.classes[0], memory=1e12),))
    assert not Simulation(Question(MODEL, PlanChoice(), 512), plenty).point(1).memory


@pytest.mark.parametrize(
    "grid, ranks, expected",
    [("", 6, ""), ("2x4", 9, "2x4"), ("x4", 12, "3x4"), ("x4", 2, "1x2"), ("3x", 12, "3x4"),
     ("3x", 1, "1x1")],
)  # fmt: skip
def test_a_grid_may_leave_a_length_open(grid, ranks, expected):
    assert closed(grid, ranks) == expected
    with pytest.raises(UserError, match="10 ranks cannot form rows of 4"):
        closed("x4", 10)


def test_a_grid_is_that_of_each_stage():
    made = cluster(np.random.default_rng(0), 1)
    asked = Question(MODEL, PlanChoice(grid="x2", stages="2", plan="owt"), 64)
    one = Simulation(asked, replace(made, classes=(replace(made.classes[0], ranks=1),)))
    assert one.point(12) == Simulation(
        replace(asked, asked=replace(asked.asked, grid="3x2")), one.cluster
    ).point(12)
    with pytest.raises(UserError, match="nodes 6: grid x2: 3 ranks cannot form rows of 2"):
        one.point(6)


@pytest.mark.parametrize(
    "text, expected",
    [("1", [1]), ("4,1,2,2", [1, 2, 4]), ("1..8", [1, 2, 4, 8]), ("3..20", [3, 6, 12, 20]),
     ("5..5,1", [1, 5]), ("1..1000", [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000])],
)  # fmt: skip
def test_numbers_of_nodes(text, expected):
    assert node_counts(text) == expected
    assert nodes_text(text.replace(",", ", ")) == text


@pytest.mark.parametrize("text", ["0", "-1", "1,", "a", "1...3", "1.5", "8..4", "1e3", "9999999"])
def test_numbers_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="--nodes .*: expected (whole numbers|ranges that rise)"):
        parse(["c.toml", f"--nodes={text}"], "simulate", {})


def test_networks_have_the_images_that_they_were_made_for():
    parameters = {"lenet5": 61_706, "cuda-convnet": 145_578, "alexnet-owt": 61_838_248}
    for name in models.NAMES:
        shape, classes = made_for(name)
        model = models.load(name, shape, classes)
        if name in parameters:
            found = sum(np.prod(p.shape) for p in model.param_specs().values())
            assert found == parameters[name]


@pytest.mark.parametrize(
    "text",
    ["", "nodes\n1", "nodes,step_s\n1,x\n", "nodes,step_s\n0,1\n", "nodes,step_s\n1,nan\n",
     "nodes,step_s\n1\n", "\xff"],
)  # fmt: skip
def test_measured_steps_that_are_none_are_refused(text, tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"m\.csv: (expected CSV|no rows|cannot be read)"):
        read_measured(str(path))


def forecast(*arguments):
    """Do what the command does, in this process."""
    return simulate(parse([str(each) for each in (EXAMPLE, *arguments)], "simulate", {}))


@pytest.mark.limit(90)
def test_the_command_prints_and_writes_what_it_finds(tmp_path):
    (tmp_path / "measured.csv").write_text("step_s,more,nodes\n0.5,x,2\n")
    job = mpi_jobs.run(
        0, "-m", "mpicnn.simulate", EXAMPLE, "--model", "alexnet-owt", "--plan", "owt",
        "--batch", 256, "--nodes", "1..8", "--measured", tmp_path / "measured.csv",
        "--out", tmp_path / "rows.csv", seconds=60,
    )  # fmt: skip
    assert (job.code, job.err) == (0, ""), job.err
    lines = job.out.splitlines()
    assert lines[0].startswith("alexnet-owt (3x224x224, 1000 classes) under plan owt, batch 256")
    assert lines[1] == "cluster lab: workstation (4), laptop (4)"
    numbers = [line.split()[:2] for line in lines[5:9]]
    assert numbers == [["1", "2"], ["2", "3"], ["4", "6"], ["8", "12"]]
    assert "speed-up" in lines[10] and all(line.startswith("note: ") for line in lines[11:])
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["nodes"] for row in rows] == ["1", "2", "4", "8"]
    assert [row["measured_step_s"] for row in rows] == ["", "0.5", "", ""]
    with pytest.raises(UserError, match=r"rows\.csv: exists; give --overwrite"):
        forecast("--out", tmp_path / "rows.csv")


@pytest.mark.limit(90)
def test_a_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "measured.csv").write_text("nodes,step_s\n2,0.5\n")
    measured = ("--measured", tmp_path / "measured.csv")
    for nodes, more in (("3", ()), ("1..40", measured)):
        path = tmp_path / f"{nodes}.png"
        forecast("--nodes", nodes, "--plot", path, "--scaling", "weak", *more)
        assert path.read_bytes().startswith(PNG)


def test_a_picture_needs_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mpicnn\[plot\]'"):
        forecast("--plot", tmp_path / "p.png")


@pytest.mark.limit(60)
def test_wrong_input_ends_with_one_line_and_code_2():
    job = mpi_jobs.run(0, "-m", "mpicnn.simulate", "none.toml", "--nodes", 2, seconds=40)
    assert (job.code, job.out) == (2, "")
    expected = "mpicnn: error: cluster none.toml: cannot be read: No such file or directory\n"
    assert job.err == expected


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--nodes", 99999), "nodes 99999: more than 65536 ranks"),
        (("--batch", 10**12), "expected at most 33554432"),
        (("--nodes", 2, "--stages", 2), "nodes 2: stages: 3 ranks cannot form 2 stages"),
        (("--out", "rows.txt"), r"expected a name that ends in \.csv"),
        (("--plot", "rows.csv"), r"expected a name that ends in \.png"),
        (("--node", 3), "did you mean --nodes"),
        (("--plan", "owl"), "there is no preset 'owl'"),
        (("--grid", "x3", "--nodes", 2, "--plan", "none.toml"), r"plan none\.toml: cannot be read"),
        (("--grid", "4"), "expected two lengths above 0"),
        (("--shares", "2,1"), "expected measured, speed or equal"),
        (("more.toml",), "one argument too many"),
        (("--model", "net.py"), "expected a network in Python or TOML"),
        (("--data", "none.h5", "--model", "vgg11"), "no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as refused:
        forecast(*arguments)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_settings_are_those_of_training_where_both_have_them():
    training, here = (parse(argv, name, {}) for argv, name in ((["c"], "simulate"), ([], "train")))
    own = json.loads(training.to_json()).items() & json.loads(here.to_json()).items()
    assert {"plan", "scheme", "sync", "stages", "order", "batch", "precision"} <= dict(own).keys()
