"""How a device's speed is found, on examples enough for its own time to show, and kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.comm.mesh import Mesh
from mpicnn.devices import calibration as calibrate
from mpicnn.devices.calibration import Calibration, Conditions
from mpicnn.devices.choice import Device
from mpicnn.devices.ranks import Rank
from mpicnn.errors import UserError
from mpicnn.layers import Conv, Flatten, Linear
from mpicnn.models import Model
from mpicnn.ops import numpy as reference

LAYER, SHAPE = Conv(64, 3, padding=1), (64, 32, 32)
FLOPS = 2 * 64 * 64 * 9 * 32 * 32  # of one example


@pytest.mark.parametrize(
    ("start", "rate", "counts"),
    [
        (0, 1e11, [52]),  # a core: WORK keeps it busy long enough
        (1e-4, 1e14, [52, 416, 1000]),  # a GPU, that takes longer to start than to compute
        (1.0, 1e14, [52]),
    ],
)
def test_a_fast_device_is_timed_on_more_examples(monkeypatch, start, rate, counts):
    asked = []

    def timed(ops, layer, shape, dtype, count):
        asked.append(count)
        return start + count * FLOPS / rate

    monkeypatch.setattr(calibrate, "_pass", timed)
    found = calibrate._time(None, LAYER, SHAPE, np.float32, 1000)
    assert asked == counts
    assert found == pytest.approx(start / counts[-1] + FLOPS / rate)


def test_few_examples_are_timed_as_they_are(monkeypatch):
    monkeypatch.setattr(calibrate, "_pass", lambda *args: 1e-6 * args[-1])
    assert calibrate._time(None, LAYER, SHAPE, np.float32, 3) == pytest.approx(1e-6)


HERE = Conditions(
    "default",
    "12ab",
    (1, 28, 28),
    "float32",
    "auto",
    (Rank("node1", "cpu", "native", 4), Rank("node2", "NVIDIA H100", "cuda", 8)),
)
MEASURED = Calibration(HERE, ("conv1", "conv2"), ((3.0, 3.0), (1.0, 1.0)), "mpicnn 0.1.0, now")


def with_second(**changed):
    return replace(HERE, ranks=(HERE.ranks[0], replace(HERE.ranks[1], **changed)))


def test_a_file_holds_for_the_same_ranks():
    assert calibrate.reuse(MEASURED.to_json(), "s.json", HERE) == MEASURED
    assert MEASURED.shares == (0.25, 0.75)


def test_a_file_says_for_each_rank_what_it_was_measured_on():
    document = json.loads(MEASURED.to_json())
    assert document["format"] == 2 and document["written"] == "mpicnn 0.1.0, now"
    assert document["ranks"][1] == {
        "host": "node2",
        "device": "NVIDIA H100",
        "backend": "cuda",
        "threads": 8,
        "seconds": [1.0, 1.0],
        "share": 0.75,
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
            replace(HERE, convolutions="34cd"),
            "digest of its convolutions: 12ab when measured, 34cd now",
        ),
        (replace(HERE, convolution="direct"), "convolution: auto when measured, direct now"),
    ],
)
def test_what_differs_first_is_named(now, difference):
    assert calibrate.reuse(MEASURED.to_json(), "s.json", now) == difference


def test_a_file_without_hosts_is_known_as_an_older_one():
    old = {"model": "default", "backends": ["native"], "seconds": [[1.0]]}
    found = calibrate.reuse(json.dumps(old), "s.json", HERE)
    assert found == "was written by an older mpicnn, without hosts, devices and threads"


def test_other_keys_do_not_matter():
    document = json.loads(MEASURED.to_json()) | {"links": []}
    document["ranks"][0]["memory"] = 1
    assert calibrate.reuse(json.dumps(document), "s.json", HERE) == MEASURED


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": 3}, "s.json: was written by a newer mpicnn .mpicnn 0.1.0, now.; give another"),
        ({"format": "2"}, "s.json: not a calibration; delete it to measure anew"),
        ({"ranks": []}, "not a calibration"),
        ({"layers": ["conv1"]}, "not a calibration"),
        ({"backends": ["native"], "ranks": [{}]}, "not a calibration"),
    ],
)
def test_what_is_no_calibration_is_never_replaced(changed, message):
    text = json.dumps(json.loads(MEASURED.to_json()) | changed)
    with pytest.raises(UserError, match=message):
        calibrate.reuse(text, "s.json", HERE)


def test_networks_of_one_name_are_told_apart():
    def conditions(*layers):
        model = Model("net", (1, 12, 12), layers)
        return calibrate.conditions(Mesh(MPI.COMM_SELF), Device(reference), model, "float32")

    flat, last = ("flatten", Flatten()), ("fc2", Linear(3))
    one = conditions(("conv1", Conv(4, 3)), flat, last)
    assert one == conditions(("conv1", Conv(4, 3)), flat, ("fc2", Linear(5)))
    other = conditions(("conv1", Conv(8, 3)), flat, last)
    assert one.difference(other).startswith("digest of its convolutions: ")
