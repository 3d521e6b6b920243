"""What mpicnn is compared with in bench/ is the same, and the scripts run."""

import csv
import importlib
from pathlib import Path

import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import ops
from mpicnn.layers import LRN, AvgPool, BatchNorm, Conv, Dropout, Flatten, Linear, MaxPool, ReLU
from mpicnn.mesh import Mesh
from mpicnn.models import Model
from mpicnn.optim import Hyper
from mpicnn.plan import preset

BENCH = Path(__file__).parents[1] / "bench"

# every kind of layer, with settings of its own wherever PyTorch could call them otherwise
ALL_LAYERS = Model(
    "all-layers",
    (4, 13, 11),
    (
        ("conv1", Conv(6, (3, 2), (2, 1), (1, 0), groups=2)),
        ("relu1", ReLU()),
        ("norm1", LRN(3, 0.1, 0.6, 1.5)),
        ("pool1", MaxPool((3, 2), (1, 2), (1, 0), ceil_mode=True)),
        ("conv2", Conv(5, 2, dilation=2, bias=False)),
        ("norm2", BatchNorm(0.2, 1e-3)),
        ("relu2", ReLU()),
        ("pool2", AvgPool(2, 1, 1, count_include_pad=False)),
        ("flatten", Flatten()),
        ("fc3", Linear(7)),
        ("drop3", Dropout(0.4)),
        ("norm3", BatchNorm()),
        ("fc4", Linear(3, bias=False)),
    ),
)


@pytest.fixture
def script(monkeypatch):
    """Return a function that imports a script of bench/."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


def drawn(script, network, batch):
    task = script("task")
    if isinstance(network, str):
        return task.Task.draw(network, batch)
    generator = np.random.default_rng(3)
    x = generator.standard_normal((batch, *network.input_shape), np.float32)
    return task.Task(network, x, generator.integers(0, network.classes, batch))


@pytest.mark.parametrize("variant", ["eager", "channels-last"])
@pytest.mark.parametrize(
    "network", ["lenet5", "cuda-convnet", ALL_LAYERS], ids=lambda n: getattr(n, "name", n)
)
def test_peer_takes_the_same_steps(subcomm, script, monkeypatch, network, variant):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    subcomm(1)
    peers, hyper = script("peers"), Hyper(rate=0.02, momentum=0.8, decay=0.3)
    monkeypatch.setattr(script("task"), "HYPER", hyper)
    task = drawn(script, network, batch=5)
    peer = peers.Peer(variant, task.model, task.weights(), task.x, task.labels, hyper)
    peer.dropout(False)
    still = task.without_dropout()
    ours = script("task").Ours(
        Mesh(MPI.COMM_SELF), ops.load("numpy"), still, preset("data", still.model, (1,))
    )
    # The second step's loss shows the first one's update, the weights after it the momentum; rate
    # and decay are so large that a parameter without either is off by far more. Sums of some
    # thousand float32 products in another order differ by about 1e-6 of their size.
    for _ in range(2):
        assert peer.step() == pytest.approx(ours.step(), rel=1e-5)
    theirs = peer.net.state_dict()
    found = {name: theirs[peers.full_name(name)].numpy() for name in task.weights()}
    for name, value in (ours.state.params | ours.state.buffers).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_peer_drops_only_when_told(subcomm, script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    subcomm(1)
    task = drawn(script, ALL_LAYERS, batch=5)
    assert task.without_dropout().model.describe() != task.model.describe()
    peers, hyper = script("peers"), script("task").HYPER
    peer = peers.Peer("eager", task.model, task.weights(), task.x, task.labels, hyper)
    peer.dropout(False)
    assert peer.net.get_submodule("drop3").p == 0
    peer.dropout(True)
    assert peer.net.get_submodule("drop3").p == 0.4


def test_what_differs_or_takes_too_long_is_not_timed(subcomm, script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    subcomm(1)
    task = drawn(script, ALL_LAYERS, batch=5)
    with pytest.raises(RuntimeError, match="its losses .* are not"):
        script("step").peers(task, [0.5], ["eager"], limit=60)
    sides, notes = script("step").peers(task, [0.5], ["eager"], limit=1e-5)
    assert (sides, notes) == ([], ["eager left out: TimeoutError: not ready within 1e-05 s"])


def kinds(calls):
    return {call.op for call in calls}


def test_kernels_are_compared_with_the_same_in_pytorch(subcomm, script, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    subcomm(1)
    backend, calls, kernels = ops.load("numpy"), script("calls"), script("kernels")
    found = calls.of_task(backend, drawn(script, ALL_LAYERS, batch=3))
    assert kinds(found) == set(backend.__all__) - {"NAME", "set_threads", "topk_correct", "xp"}
    for call in found:
        sides = kernels.sides_of(backend, call, peer=True)
        images = any(getattr(arg, "ndim", 0) == 4 for arg in call.args)
        assert [side.name for side in sides[1:]] == ["eager", "channels-last"][: 1 + images]
    # a kernel that is wrong is not timed
    monkeypatch.setattr(backend, "maxpool_dx", lambda dy, _, x_shape, *rest: np.ones(x_shape))
    (call,) = (call for call in found if call.op == "maxpool_dx")
    with pytest.raises(RuntimeError, match="maxpool_dx .* differs"):
        kernels.sides_of(backend, call, peer=True)


def test_kernels_of_a_step_are_counted(subcomm, script):
    subcomm(1)
    found = script("calls").of_task(ops.load("numpy"), drawn(script, ALL_LAYERS, batch=3))
    conv1, *_ = found
    # 6 maps of 7x10, each from 2 of 4 channels by 3x2 taps
    assert (conv1.op, conv1.flop) == ("conv2d", 2 * 3 * 6 * 7 * 10 * 2 * 3 * 2)
    assert conv1.bytes == 4 * (3 * 4 * 13 * 11 + 6 * 2 * 3 * 2 + 6 + 3 * 6 * 7 * 10)
    for name in ("conv2d_dw", "linear", "linear_dw", "linear_dx"):
        flops = [call.flop for call in found if call.op == name]
        assert all(flops) and flops
    assert sum(call.times for call in found if call.op == "sgd") == len(ALL_LAYERS.param_specs())


@pytest.mark.limit(60)
def test_kernels_are_timed(subcomm, tmp_path):
    subcomm(1)
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        0, BENCH / "kernels.py", "--no-peer", "--models", "lenet5", "--kernels", "linear,relu",
        "--batch", "2", "--threads", "1", "--backend", "numpy", "--repeats", "1", "--out", out,
        seconds=40,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["kernel"] for row in rows] == ["relu"] * 2 + ["linear", "relu"] * 2 + ["linear"]
    for row in rows:
        assert row["unit"] == ("GFLOP/s" if row["kernel"] == "linear" else "GB/s")
        assert float(row["rate"]) > 0 and float(row["share"]) > 0
        assert row["ratio"] == row["eager_ms"] == ""
    assert rows[2]["arguments"] == "2x400 120x400 120"


@pytest.mark.limit(60)
@pytest.mark.parametrize("ranks", [0, 2])
def test_script_times_a_network(subcomm, tmp_path, ranks):
    subcomm(1)
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        ranks, BENCH / "step.py", "--no-peer", "--models", "lenet5", "--batch", "4",
        "--threads", "1", "--backend", "numpy", "--repeats", "2", "--out", out, seconds=40,
    )  # fmt: skip
    assert job.code == 0, job.err
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["network"], row["side"], row["turns"]) == ("lenet5", "mpicnn", "2")
    assert int(row["ranks"]) == max(1, ranks)
    rate = float(row["images_per_s"])
    assert 0 < float(row["lowest"]) <= rate <= float(row["highest"])
    table = [text.split() for text in job.out.splitlines()]
    assert ["lenet5", "4", f"{max(1, ranks)}x1", f"{rate:,.1f}", *"-----"] in table


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--models", "lenet", "unknown network 'lenet'"),
        ("--batch", "0", "argument --batch: invalid"),
        ("--plan", "dat", "no preset 'dat'"),
        ("--variants", "lazy", "expected some of eager"),
    ],
)
def test_script_says_what_is_wrong(subcomm, option, value, message):
    subcomm(1)
    job = mpi_jobs.run(0, BENCH / "step.py", "--no-peer", "--models", "lenet5", option, value)
    assert job.code == 2
    assert message in job.err
    assert "Traceback" not in job.err
