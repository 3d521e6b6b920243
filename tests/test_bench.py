"""What mpicnn is compared with in bench/ is the same, and the scripts run."""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import models, ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.forecast.cost import step_costs
from mpicnn.layers import (
    GELU,
    LRN,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    HardSwish,
    LeakyReLU,
    Linear,
    MaxPool,
    Multiply,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from mpicnn.models import Model
from mpicnn.ops.interface import MEMBERS
from mpicnn.step.optimiser import Hyper

BENCH = Path(__file__).parents[1] / "bench"

ACTIVATIONS = ReLU6(), LeakyReLU(0.2), HardSwish(), Sigmoid(), Tanh(), SiLU(), GELU()

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
        ("norm4", GroupNorm(5)),
        *((f"act{n}", layer) for n, layer in enumerate(ACTIVATIONS)),
        ("flatten", Flatten()),
        ("fc3", Linear(7)),
        ("drop3", Dropout(0.4)),
        ("norm3", BatchNorm()),
        ("fc4", Linear(3, bias=False)),
    ),
)

# every way in which layers read others: what is read twice, or by a backward pass, stays as it is
GRAPH = Model(
    "graph",
    (3, 10, 8),
    (
        ("conv1", Conv(6, 3, padding=1)),
        ("relu1", ReLU()),
        ("conv2", Conv(6, 3, padding=1)),
        ("norm2", BatchNorm()),
        ("relu2", ReLU6(), ("conv2",)),
        ("add3", Add(), ("norm2", "relu1", "relu2")),
        ("relu3", ReLU()),
        ("act3", Sigmoid(), ("add3",)),
        ("add4", Add(), ("relu3", "act3")),
        ("pool4", GlobalAvgPool()),
        ("gate4", Sigmoid()),
        ("mul4", Multiply(), ("relu1", "gate4")),
        ("cat5", Concat(), ("mul4", "add4", "relu1")),
        ("relu5", ReLU()),
        ("flatten", Flatten()),
        ("fc6", Linear(3)),
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
    "network",
    ["lenet5", "cuda-convnet", ALL_LAYERS, GRAPH],
    ids=lambda n: getattr(n, "name", n),
)
def test_peer_takes_the_same_steps(script, monkeypatch, network, variant):
    pytest.importorskip("torch", reason="PyTorch is not installed")
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


def test_peer_drops_only_when_told(script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    task = drawn(script, ALL_LAYERS, batch=5)
    assert task.without_dropout().model.describe() != task.model.describe()
    peers, hyper = script("peers"), script("task").HYPER
    peer = peers.Peer("eager", task.model, task.weights(), task.x, task.labels, hyper)
    peer.dropout(False)
    assert peer.net.get_submodule("drop3").p == 0
    peer.dropout(True)
    assert peer.net.get_submodule("drop3").p == 0.4


def test_what_differs_or_takes_too_long_is_not_timed(script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    task = drawn(script, ALL_LAYERS, batch=5)
    with pytest.raises(RuntimeError, match="its losses .* are not"):
        script("step").peers(task, [0.5], ["eager"], limit=60)
    sides, notes = script("step").peers(task, [0.5], ["eager"], limit=1e-5)
    assert (sides, notes) == ([], ["eager left out: TimeoutError: not ready within 1e-05 s"])


def kinds(calls):
    return {call.op for call in calls}


def test_kernels_are_compared_with_the_same_in_pytorch(script, monkeypatch):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    backend, calls, kernels = ops.load("numpy"), script("calls"), script("kernels")
    found = calls.of_task(backend, drawn(script, ALL_LAYERS, batch=3))
    others = {"NAME", "images", "xp", *calls._NOT_TIMED}
    assert kinds(found) == set(MEMBERS) - others
    for call in found:
        sides = kernels.sides_of(backend, call, peer=True)
        images = any(getattr(arg, "ndim", 0) == 4 for arg in call.args)
        assert [side.name for side in sides[1:]] == ["eager", "channels-last"][: 1 + images]
    # a kernel that is wrong is not timed
    monkeypatch.setattr(backend, "maxpool_dx", lambda dy, _, x_shape, *rest: np.ones(x_shape))
    (call,) = (call for call in found if call.op == "maxpool_dx")
    with pytest.raises(RuntimeError, match="maxpool_dx .* differs"):
        kernels.sides_of(backend, call, peer=True)


def test_kernels_of_a_step_are_counted(script):
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
def test_kernels_are_timed(tmp_path):
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        0, BENCH / "kernels.py", "--no-peer", "--models", "lenet5",
        "--kernels", "linear,activate_dx",
        "--batch", "2", "--threads", "1", "--backend", "numpy", "--repeats", "1", "--out", out,
        seconds=40,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["kernel"] for row in rows] == ["linear"] * 3 + ["activate_dx"] * 4
    for row in rows:
        assert row["unit"] == ("GFLOP/s" if row["kernel"] == "linear" else "GB/s")
        assert float(row["rate"]) > 0 and float(row["share"]) > 0
        assert row["ratio"] == row["eager_ms"] == ""
    assert rows[0]["arguments"] == "2x400 120x400 120 True"


@pytest.mark.limit(60)
@pytest.mark.parametrize("ranks", [0, 2])
def test_script_times_a_network(tmp_path, ranks):
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


STANDIN = str(Path(__file__).parent / "standin")
GPU = BENCH / "gpu.py", "--models", "lenet5:3", "--edge", "16", "--copied", "1", "--repeats", "1"


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", [True, False])
def test_gpu_is_timed(tmp_path, peer):
    """On the stand-in for a GPU, with PyTorch on the CPU: that it runs, not how fast."""
    if peer:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    out = tmp_path / "rows.csv"
    path = os.pathsep.join([STANDIN, os.environ.get("PYTHONPATH", "")])
    job = mpi_jobs.run(
        0, *GPU, "--variants", "channels-last", "--out", out, *([] if peer else ["--no-peer"]),
        seconds=100, STANDIN_GPUS="1", PYTHONPATH=path,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    sides = ["mpicnn", "channels-last"] if peer else ["mpicnn"]
    precisions = [p for p in ("float32", "tf32", "bf16") for _ in sides]
    assert [row["precision"] for row in rows] == precisions
    assert [row["side"] for row in rows] == sides * 3
    for row in rows:
        assert (row["network"], row["batch"]) == ("lenet5", "3")
        assert 0 < float(row["lowest_ms"]) <= float(row["step_ms"]) <= float(row["highest_ms"])
        least, step = float(row["least_ms"]), float(row["step_ms"])
        # of the share three decimals are written, of the times four
        rounding = 1e-3 + least / step * (1e-4 / least + 1e-4 / step)
        assert float(row["share"]) == pytest.approx(least / step, rel=0, abs=rounding)
    assert ("PyTorch on cpu" in job.out) == peer


def test_least_time_counts_both_limits(script):
    task = drawn(script, "lenet5", batch=4)
    ours = script("task").Ours(
        Mesh(MPI.COMM_SELF), ops.load("numpy"), task, preset("data", task.model, (1,))
    )
    gpu = script("gpu")
    costs = step_costs(compile(task.model, preset("data", task.model, (1,)), 4), 4)
    flops, touched = (
        sum(vars(c.work)[name].item() for c in costs) for name in ("flops", "bytes_touched")
    )
    assert gpu.floor(ours, gpu.Limits(1e9, 1e30)) == pytest.approx(flops / 1e9)
    assert gpu.floor(ours, gpu.Limits(1e30, 1e9)) == pytest.approx(touched / 1e9)
    assert gpu.floor(ours, gpu.Limits(1e9, 1e9)) > max(flops, touched) / 1e9


@pytest.mark.parametrize(
    ("gpus", "options", "code", "message"),
    [
        ("0", (), 69, "CUDA shows no GPU"),
        ("1", ("--models", "lenet5:x"), 2, "models lenet5:x: expected"),
        ("1", ("--backend", "numpy"), 2, "backend numpy: gpu.py computes with cuda"),
    ],
)
def test_gpu_script_says_what_is_wrong(gpus, options, code, message):
    path = os.pathsep.join([STANDIN, os.environ.get("PYTHONPATH", "")])
    job = mpi_jobs.run(0, *GPU, *options, STANDIN_GPUS=gpus, PYTHONPATH=path)
    assert job.code == code
    assert message in job.err
    assert len(job.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--models", "lenet", "unknown network 'lenet'"),
        ("--batch", "0", "argument --batch: invalid"),
        ("--plan", "dat", "no preset 'dat'"),
        ("--variants", "lazy", "expected some of eager"),
    ],
)
def test_script_says_what_is_wrong(option, value, message):
    job = mpi_jobs.run(0, BENCH / "step.py", "--no-peer", "--models", "lenet5", option, value)
    assert job.code == 2
    assert message in job.err
    assert "Traceback" not in job.err


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", [True, False])
def test_schemes_are_compared(tmp_path, peer):
    if peer:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        2, BENCH / "schemes.py", "--models", "lenet5", "--batch", "8", "--repeats", "2",
        "--plans", "data-sharded,owt-c", "--variants", "eager", "--out", out,
        *([] if peer else ["--no-peer"]), seconds=100,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = {row["side"]: row for row in csv.DictReader(out.read_text().splitlines())}
    plans = [f"{plan} {way}" for plan in ("data-sharded", "owt-c") for way in ("thread", "none")]
    assert list(rows) == [*plans, *(["DDP eager"] if peer else [])]
    for name in plans:
        row = rows[name]
        assert 0 < float(row["lowest_ms"]) <= float(row["step_ms"]) <= float(row["highest_ms"])
        # A part of every timed step, so of each turn and of their median, to the digits printed.
        assert 0 < float(row["exposed_ms"]) < float(row["step_ms"]) + 1e-3
        assert 0 < float(row["arrays_mb"]) < float(row["peak_mb"]) + 1
        assert bool(row["speed_over_ddp"]) == peer
    model = models.load("lenet5", (1, 28, 28), 10)
    for name, plan in (
        ("data-sharded", preset("data", model, (2,), sync="sharded")),
        ("owt-c", preset("owt", model, (2,), scheme="c")),
    ):
        sent = sum(cost.work.bytes_sent for cost in step_costs(compile(model, plan, 8), 4))
        assert float(rows[f"{name} none"]["sent_mb"]) == pytest.approx(max(sent) / 1e6, abs=1e-3)


def test_distributed_peer_must_train_the_same(script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    mesh = Mesh(MPI.COMM_SELF)
    task = drawn(script, "lenet5", batch=4)
    with script("ddp").group(mesh), pytest.raises(RuntimeError, match="DDP eager: losses"):
        script("sides").peers_of(mesh, task, [0.5], ["eager"])


def can_divide_hosts():
    """Say whether this process may make network namespaces and limit their links."""
    tools = all(shutil.which(tool) for tool in ("ip", "tc", "unshare"))
    if not tools or os.getuid():
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


def hosts_made():
    """Return the names of the network namespaces that there are."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


@pytest.mark.limit(120)
def test_slow_links_carry_what_the_plan_predicts(tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not can_divide_hosts() or not mpirun.exists() or "MPICH" not in MPI.Get_library_version():
        pytest.skip("takes root, iproute2 and MPICH beside the interpreter")
    before = hosts_made()
    out = tmp_path / "rows.csv"
    path = f"{mpirun.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [
            BENCH / "slow_links.sh", "2", "1gbit", sys.executable, BENCH / "schemes.py",
            "--models", "cuda-convnet", "--plans", "data", "--progress", "poll", "--batch", "8",
            "--no-peer", "--count", "--out", out,
        ],
        env=mpi_jobs.environment(PATH=path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert row["hosts"] == "2"
    # Headers of Ethernet, IP, TCP and MPI, acknowledgements, the loss and the meeting of ranks.
    assert 1 <= float(row["wire_mb"]) / float(row["sent_mb"]) < 1.25
    assert hosts_made() <= before


@pytest.mark.limit(120)
def test_faults_are_counted():
    """A sample; what each family asserts is shown by what the tests draw themselves."""
    families = ("random plans", "plan files", "image files", "kill -9, twice")
    only = [word for family in families for word in ("--only", family)]
    job = mpi_jobs.run(0, BENCH / "faults.py", "--count", 1, *only, seconds=110)
    assert job.code == 0, job.out + job.err
    rows = [line.rsplit(maxsplit=3) for line in job.out.splitlines()[1:]]
    assert [(name, tried, survived) for name, tried, survived, _ in rows] == [
        ("random plans", "1", "1"), ("plan files", "5", "5"), ("image files", "5", "5"),
        ("kill -9, twice", "1", "1"),
    ]  # fmt: skip


def test_trace_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    events = [
        {"name": name, "cat": kind, "ph": "X", "ts": ts, "dur": 900.0, "pid": rank, "tid": lane}
        for rank in (0, 1)
        for step in (0, 1, 2)
        for name, kind, ts, lane in (
            ("conv1", "convolution", 3000.0 * step, 1),
            ("fc2", "communication", 3000.0 * step + 500, 2),
            ("update", "other", 3000.0 * step + 2000, 1),
        )
    ]
    trace, out = tmp_path / "trace.json", tmp_path / "picture.png"
    trace.write_text(json.dumps({"traceEvents": events}))
    job = mpi_jobs.run(0, BENCH / "trace_picture.py", f"(a)={trace}", "--step", 1, "--out", out)
    assert job.code == 0, job.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_each_way_of_varying_images_is_timed_and_drawn(script):
    augmentation = script("augmentation")
    found = augmentation.costs(8, 6, batch=2, repeats=1)
    assert found.keys() == augmentation.WAYS.keys()
    assert min(found.values()) > 0
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 9, 8), np.uint8)
    drawn = augmentation.picture(images, np.zeros(1), scale=2)
    # saturation and hue are not for images of one channel
    assert drawn.size == (4 * (2 * 8 + 4), (len(augmentation.WAYS) - 2) * (2 * 9 + 4))
    np.testing.assert_array_equal(np.asarray(drawn)[:18:2, :16:2], images[0, 0])
