"""What ranks need for each layer: the line through what is timed, the file, and when it holds."""

import json
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import __version__
from mpicnn.comm.mesh import Mesh
from mpicnn.devices import calibration as calibrate
from mpicnn.devices.calibration import Calibration, Conditions, Speed
from mpicnn.devices.choice import Device
from mpicnn.devices.measuring import line, measure
from mpicnn.devices.ranks import Rank
from mpicnn.division.compile import compile_all
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.forecast.machine import Link
from mpicnn.forecast.timeline import timeline
from mpicnn.layers import BatchNorm, Conv, Flatten, Linear, ReLU
from mpicnn.models import Model
from mpicnn.ops import numpy as reference


def test_the_line_of_exact_times_is_found():
    rng = np.random.default_rng(0)
    for start, slope in rng.uniform(0, 1, (20, 2)):
        work = rng.uniform(0, 1e3, 3)
        found = line([(w, start + slope * w) for w in work])
        assert found == pytest.approx((start, slope))


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.0, 3.0), (2.0, 2.0)], (0.0, 2.2 * 3 / 5)),  # quicker for more: only the mean is kept
        ([(1.0, 0.1), (2.0, 2.0)], (0.0, 0.82)),  # no start below 0
        ([(0.0, 2.0), (0.0, 4.0)], (3.0, 0.0)),
        ([(5.0, 1.0)], (0.0, 0.2)),
    ],
)
def test_noise_gives_neither_start_nor_slope_below_0(points, expected):
    start, slope = line(points)
    assert start >= 0 and slope >= 0
    work, seconds = np.array(points).T
    if work.any():  # the mean, by work, is met
        assert start * work.sum() + slope * (work**2).sum() == pytest.approx((work * seconds).sum())
    assert (start, slope) == pytest.approx(expected, rel=0.2)


def network():
    layers = (
        ("conv1", Conv(4, 3)),
        ("norm1", BatchNorm()),
        ("relu1", ReLU()),
        ("flatten", Flatten()),
        ("fc2", Linear(3)),
    )
    return Model("net", (1, 8, 8), layers)


@pytest.mark.mpi
def test_all_passes_are_measured_and_give_a_machine_of_all_ranks(subcomm):
    mesh, model = Mesh(subcomm(2)), network()
    now = calibrate.conditions(mesh, Device(reference), model, "float64")
    found = measure(mesh, reference, model, now, 1)  # less than an example for every rank
    names = {name for name, _ in model.layers}
    passes = {f"{name} {way}" for name in names for way in ("forward", "backward")}
    assert set(found.passes) == passes
    assert len(found.speeds) == mesh.world.size
    assert all(speed.per_example > 0 and speed.per_byte > 0 for speed in found.speeds)
    assert Calibration.from_json(found.to_json(), "s.json") == found
    plan = preset("data", model, (mesh.world.size,))
    expected = timeline(compile_all(model, plan, 12), found.machine(), 8)
    assert 0 < expected.seconds < 10


def test_a_machine_takes_what_was_measured():
    model = network()
    plan = preset("data", model, (2,))
    programs = compile_all(model, plan, 4)
    names = [f"{name} {way}" for name, _ in model.layers for way in ("forward", "backward")]
    ranks = (Rank("a", "cpu", "native", 1), Rank("b", "cpu", "native", 1))
    speeds = tuple(
        Speed((start,) * len(names), (0.0,) * len(names), 1.0, 0.0, 0.0) for start in (0.5, 0.25)
    )
    now = replace(HERE, ranks=ranks)
    made = Calibration(now, tuple(names), speeds, Link(), Link(), "now")
    # the ReLU is joined with nothing, as batch norm stands between: ten passes
    found = timeline(programs, made.machine(), 8)
    assert found.seconds == pytest.approx(10 * 0.5)
    assert made.machine().hosts == (0, 1)


HERE = Conditions(
    "default",
    "12ab",
    (1, 28, 28),
    "float32",
    "auto",
    "0.1.0",
    (Rank("node1", "cpu", "native", 4), Rank("node2", "NVIDIA H100", "cuda", 8)),
)
PASSES = ("conv1 forward", "conv1 backward")
MEASURED = Calibration(
    HERE,
    PASSES,
    (
        Speed((0.0, 1e-5), (1e-10, 2e-10), 6.0, 1e-10, 1e-5),
        Speed((0.0, 1e-6), (1e-12, 2e-12), 2.0, 1e-12, 1e-6),
    ),
    Link(1e-6, 1e9, 1.0),
    Link(1e-5, inf, 0.5),
    "mpicnn 0.1.0, now",
)


def with_second(**changed):
    return replace(HERE, ranks=(HERE.ranks[0], replace(HERE.ranks[1], **changed)))


def test_a_file_holds_for_the_same_ranks():
    assert calibrate.reuse(MEASURED.to_json(), "s.json", HERE) == MEASURED
    assert MEASURED.shares == (0.25, 0.75)


def test_a_file_says_for_each_rank_what_it_was_measured_on():
    document = json.loads(MEASURED.to_json())
    assert document["format"] == 3 and document["written"] == "mpicnn 0.1.0, now"
    assert document["ranks"][1] == {
        "host": "node2",
        "device": "NVIDIA H100",
        "backend": "cuda",
        "threads": 8,
        "share": 0.75,
        "starts": [0.0, 1e-6],
        "per_work": [1e-12, 2e-12],
        "per_example": 2.0,
        "per_byte": 1e-12,
        "start": 1e-6,
    }


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (with_second(host="node7"), "host of rank 1: node2 when measured, node7 now"),
        (with_second(device="cpu"), "device of rank 1: NVIDIA H100 when measured, cpu now"),
        (with_second(backend="numpy"), "backend of rank 1: cuda when measured, numpy now"),
        (with_second(threads=2), "threads of rank 1: 8 when measured, 2 now"),
        (replace(HERE, ranks=HERE.ranks[:1]), "number of ranks: 2 when measured, 1 now"),
        (replace(HERE, ranks=HERE.ranks[::-1]), "host of rank 0: node1 when measured, node2 now"),
        (replace(HERE, model="vgg11"), "model: default when measured, vgg11 now"),
        (
            replace(HERE, network="34cd"),
            "digest of its layers: 12ab when measured, 34cd now",
        ),
        (replace(HERE, version="0.2.0"), "version: 0.1.0 when measured, 0.2.0 now"),
        (replace(HERE, convolution="direct"), "convolution: auto when measured, direct now"),
    ],
)
def test_what_differs_first_is_named(now, difference):
    assert calibrate.reuse(MEASURED.to_json(), "s.json", now) == difference


@pytest.mark.parametrize(
    "old",
    [
        {"model": "default", "backends": ["native"], "seconds": [[1.0]]},
        {"format": 2, "model": "default", "ranks": [{"seconds": [1.0]}]},
    ],
)
def test_a_file_of_an_older_format_is_known_as_one(old):
    found = calibrate.reuse(json.dumps(old), "s.json", HERE)
    assert found == "was written by an older mpicnn, with the times of convolutions alone"


def test_other_keys_do_not_matter():
    document = json.loads(MEASURED.to_json()) | {"links": []}
    document["ranks"][0]["memory"] = 1
    assert calibrate.reuse(json.dumps(document), "s.json", HERE) == MEASURED


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 4}, "s.json: was written by a newer mpicnn .mpicnn 0.1.0, now.; give another"),
        ({"format": "2"}, "s.json: not a calibration; delete it to measure anew"),
        ({"ranks": []}, "not a calibration"),
        ({"passes": ["conv1 forward"]}, "not a calibration"),
        ({"inside": {"latency": -1.0, "bandwidth": 1.0, "busy": 0.0}}, "not a calibration"),
        ({"backends": ["native"], "ranks": [{}]}, "not a calibration"),
    ],
)
def test_what_is_no_calibration_is_never_replaced(changed, message):
    text = json.dumps(json.loads(MEASURED.to_json()) | changed)
    with pytest.raises(UserError, match=message):
        calibrate.reuse(text, "s.json", HERE)


def test_networks_of_one_name_are_told_apart():
    def conditions(*layers, frozen=frozenset()):
        model = Model("net", (1, 12, 12), layers, frozen)
        return calibrate.conditions(Mesh(MPI.COMM_SELF), Device(reference), model, "float32")

    flat, last = ("flatten", Flatten()), ("fc2", Linear(3))
    one = conditions(("conv1", Conv(4, 3)), flat, last)
    assert one.version == __version__
    assert not one.difference(conditions(("conv1", Conv(4, 3)), flat, last))
    other = conditions(("conv1", Conv(8, 3)), flat, last)
    assert one.difference(other).startswith("digest of its layers: ")
    frozen = conditions(("conv1", Conv(4, 3)), flat, last, frozen=frozenset({"conv1"}))
    assert one.difference(frozen).startswith("digest of its layers: ")
