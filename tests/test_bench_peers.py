"""What mpicnn is compared with in bench/ computes the same, and work is counted alike."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import ops
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


def test_distributed_peer_must_train_the_same(script):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    mesh = Mesh(MPI.COMM_SELF)
    task = drawn(script, "lenet5", batch=4)
    with script("ddp").group(mesh), pytest.raises(RuntimeError, match="DDP eager: losses"):
        script("sides").peers_of(mesh, task, [0.5], ["eager"])
