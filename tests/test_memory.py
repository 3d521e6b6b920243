"""Whose memory is whose: backward passes read what layers declare, peaks are what is forecast."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from random_cases import compare_with_one_rank, draw
from test_graphs import JOINS
from test_layers import LAYERS
from zoo_cases import narrow

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import Pending
from mpicnn.division.compile import compile
from mpicnn.division.operations import Accumulate, Backward, Forward, Free
from mpicnn.division.plan import Plan
from mpicnn.division.presets import preset
from mpicnn.forecast.memory import step_peak
from mpicnn.layers import (
    Add,
    BatchNorm,
    Context,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    ReLU,
    Sigmoid,
)
from mpicnn.models import Model, load
from mpicnn.ops import available
from mpicnn.ops import load as load_ops
from mpicnn.step.executor import Executor
from mpicnn.step.interpreter import Interpreter
from mpicnn.step.state import initial_state

N = 3
CASES = [(layer, (shape,)) for layer, shape in LAYERS] + [(j, tuple(s)) for j, s in JOINS]
HOST = [name for name in available() if name != "cuda"]
# a fork whose gradients meet, a view between layers, a value that two layers read
FORKED = Model(
    "forked",
    (2, 6, 5),
    (
        ("conv1", Conv(4, 3, padding=1)),
        ("bn1", BatchNorm()),
        ("relu1", ReLU()),
        ("conv2", Conv(4, 3, padding=1)),
        ("bn2", BatchNorm()),
        ("add2", Add(), ("bn2", "relu1")),
        ("relu2", ReLU()),
        ("twice", Add(), ("relu2", "relu2")),
        ("act", Sigmoid()),
        ("conv3", Conv(4, 1), ("relu2",)),
        ("bn3", BatchNorm()),
        ("add3", Add(), ("bn3", "act", "conv3")),
        ("pool", MaxPool(2)),
        ("relu3", ReLU()),
        ("mean", GlobalAvgPool()),
        ("flat", Flatten()),
        ("relu4", ReLU()),
        ("drop", Dropout(0.3)),
        ("fc", Linear(5)),
    ),
)


def arrays(found: Any) -> list[Any]:
    """Return the arrays in what a layer made, however nested, or in a move without message."""
    if isinstance(found, Pending) and found.poll():
        found = found.wait()
    if isinstance(found, tuple | list):
        return [a for part in found for a in arrays(part)]
    return [found] if isinstance(found, np.ndarray) else []


def spoil(*spoilt: Any) -> None:
    for a in spoilt:
        a[...] = np.nan


class Passes:
    """Run one layer forward and backward on the same numbers, again and again."""

    def __init__(self, name: str, layer: Any, shapes: Any) -> None:
        self.ops, self.layer, self.shapes = load_ops(name), layer, shapes
        self.fed = shapes if layer.joins else shapes[0]
        self.out = layer.out_shape(self.fed)
        rng = np.random.default_rng(4)
        self.xs = [rng.standard_normal((N, *shape)) for shape in shapes]
        self.dy = rng.standard_normal((N, *self.out))
        specs = layer.params(self.fed) | layer.buffers(self.fed)
        self.p = {name: rng.random(spec.shape) + 0.5 for name, spec in specs.items()}

    def run(self, *over: str, spoilt: bool = False) -> tuple[list[Any], Any, Any]:
        """Return copies of y, dx and gradients; y itself with what else is on the tape; x."""
        layer, ops = self.layer, self.ops
        p = {name: a.copy() for name, a in self.p.items()}
        xs, dy = [a.copy() for a in self.xs], self.dy.copy()
        x = xs if layer.joins else xs[0]
        context = Context(True, 3, 1, 2, N, np.arange(N), (0, self.out[0]))
        context.over = frozenset(over)
        y, made = layer.forward(ops, x, p, context)
        results = [y.copy()]
        if spoilt:
            # y may be a view of x: what is declared must stay
            kept = [*(xs if "x" in layer.reads else ()), *([y] if "y" in layer.reads else ())]
            mine = arrays(made) if "x" in over else []
            spoil(*(a for a in (*xs, y) if not _shared(a, [*kept, *mine])))
        dx, grads = layer.backward(ops, dy, layer.tape(x, y, made), p, context)
        return [*results, *(dx if layer.joins else [dx]), *grads.values()], (y, made), xs


def _shared(a: Any, others: Any) -> bool:
    return any(np.shares_memory(a, other) for other in others)


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize(("layer", "shapes"), CASES, ids=lambda v: str(v).replace(" ", ""))
class TestLayer:
    def test_backward_reads_what_is_declared(self, name: str, layer: Any, shapes: Any) -> None:
        passes = Passes(name, layer, shapes)
        expected = passes.run()[0]
        for over in ((), ("x",), ("dy",), ("x", "dy")):
            if "x" in layer.reads and "x" in over:
                continue  # then somebody reads it: its own backward pass
            for found, right in zip(passes.run(*over, spoilt=True)[0], expected, strict=True):
                np.testing.assert_array_equal(found, right, err_msg=str(over))

    def test_views_are_declared(self, name: str, layer: Any, shapes: Any) -> None:
        passes = Passes(name, layer, shapes)
        _, (y, made), xs = passes.run()
        assert "y" in layer.views or not _shared(y, xs)
        # an array of x or y in `made` would be written over, or freed too late
        assert not any(_shared(a, [*xs, y]) for a in arrays(made))
        if "dx" not in layer.views:
            context = Context(True, 3, 1, 2, N, np.arange(N), (0, passes.out[0]))
            x = xs if layer.joins else xs[0]
            tape = layer.tape(x, y, made)
            dx, _ = layer.backward(passes.ops, passes.dy, tape, passes.p, context)
            assert not any(_shared(a, [passes.dy]) for a in (dx if layer.joins else [dx]))

    def test_what_is_made_is_as_large_as_declared(self, name: str, layer: Any, shapes: Any) -> None:
        _, (y, made), xs = Passes(name, layer, shapes).run()
        declared = layer.made_bytes(tuple(x.shape for x in xs), y.shape, 8)
        assert declared == sum(a.nbytes for a in arrays(made))


class Spoiling(Interpreter):
    """Fill arrays with NaN as soon as all slots are free that may see their memory."""

    spoilt = 0

    def _free(self, op: Free) -> None:
        gone = [a for slot in op.slots for a in arrays(self.values[slot])]
        super()._free(op)
        left = arrays([value for value in self.values if value is not None])
        gone = [a for a in gone if a.flags.writeable and not _shared(a, left)]
        spoil(*(a for a in gone if a.dtype.kind == "f"))
        Spoiling.spoilt += len(gone)


def trained(program: Any, ops: Any, x: Any) -> tuple[dict[str, Any], Any]:
    """Return the gradients and totals of a step on one rank."""
    state = initial_state(program.weights, (0,), 1, np.dtype(np.float64))
    labels = np.arange(len(x)) % 5
    runner = Executor(Mesh(MPI.COMM_SELF), ops, seed=1)
    grads, totals = runner.train(program, state, x.copy(), labels, 0)
    return grads, totals.read()


def kept_apart(program: Any) -> Any:
    """Return a program that writes nothing over anything."""

    def apart(op: Any) -> Any:
        if isinstance(op, Forward | Backward):
            return op._replace(over=False)
        return op._replace(over=None) if isinstance(op, Accumulate) else op

    return replace(program, ops=tuple(map(apart, program.ops)))


@pytest.mark.parametrize("name", HOST)
@pytest.mark.parametrize("net", [FORKED, "resnet20", "densenet121", "squeezenet", "mobilenet-v2"])
def test_no_freed_array_is_read(monkeypatch: Any, name: str, net: Any) -> None:
    """Gradients are the same to the bit when all that is free is spoilt, and nothing reused."""
    model = narrow(net, (3, 33, 33), 5, 8) if isinstance(net, str) else net
    program = compile(model, preset("data", model, (1,)), 4).at((0,))
    x = np.random.default_rng(8).standard_normal((4, *model.input_shape))
    ops = load_ops(name)
    expected, sums = trained(kept_apart(program), ops, x)
    monkeypatch.setattr("mpicnn.step.executor.Interpreter", Spoiling)
    Spoiling.spoilt = 0
    grads, totals = trained(program, ops, x)
    assert Spoiling.spoilt > len(model.layers)
    np.testing.assert_array_equal(totals, sums)
    for key, value in expected.items():
        np.testing.assert_array_equal(grads[key], value, err_msg=key)


@pytest.mark.parametrize("seed", range(24))
def test_no_freed_array_is_read_under_any_plan(monkeypatch: Any, seed: int) -> None:
    """Random graphs under random plans train as one rank does, though what is free is spoilt."""
    monkeypatch.setattr("mpicnn.step.executor.Interpreter", Spoiling)
    compare_with_one_rank(draw(seed, graph=True))


def overs(model: Model, plan: Plan | None = None) -> list[tuple[str, str]]:
    """Return which layers write over what: y, or dx, or a sum of gradients ("add")."""
    found = []
    for op in compile(model, plan or preset("data", model, (1,)), 4).ops:
        if isinstance(op, Forward | Backward) and op.over:
            found.append((type(op).__name__.lower(), op.call.name))
        elif isinstance(op, Accumulate) and op.over is not None:
            found.append(("sum", ""))
    return found


def test_only_what_nobody_else_reads_is_written_over() -> None:
    found = overs(FORKED)
    forward = {name for kind, name in found if kind == "forward"}
    # conv3 is read twice, inputs of batch norm and relu2 by their own backward passes, and pool
    # leaves relu3 an array of its own
    assert forward == {"relu1", "add2", "relu2", "act", "add3", "relu3", "relu4"}
    backward = {name for kind, name in found if kind == "backward"}
    # what an addition gives back is one array for all its inputs
    assert {"relu4", "relu3", "act", "relu2", "relu1", "bn1"} <= backward
    assert not {"add3", "bn3"} & backward


def test_inference_writes_over_nothing() -> None:
    program = compile(FORKED, preset("data", FORKED, (1,)), 4).at((0,))
    assert not any(op.over for op in program.forward if isinstance(op, Forward))


def test_a_gradient_is_summed_where_its_array_is_free() -> None:
    """conv1's gradient is added to what add2 gave back, once bn2 has read that."""
    assert ("sum", "") in overs(FORKED)


NETWORKS = ["default", "cuda-convnet", "alexnet-owt", "resnet20", "googlenet", "densenet121"]


@pytest.mark.skipif("native" not in HOST, reason="NumPy's convolutions take arrays of their own")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_peak_is_forecast(name: str) -> None:
    model = load(name, *SHAPES.get(name, ((3, 64, 64), 10)))
    plan = preset("data", model, (1,))
    assert_forecast(Mesh(MPI.COMM_SELF), model, plan, batch=8)


PLANS = {
    "data": "data", "owt, sharded": "owt", "filter": "filter", "fc-input": "fc-input",
    "master-worker": "master-worker", "micro-batches": "data",
}  # fmt: skip


@pytest.mark.mpi
@pytest.mark.skipif("native" not in HOST, reason="NumPy's convolutions take arrays of their own")
@pytest.mark.parametrize("name", PLANS)
def test_the_peak_is_forecast_on_every_rank(subcomm: Any, name: str) -> None:
    model = load("cuda-convnet", (3, 32, 32), 10)
    sync = "sharded" if "sharded" in name else "allreduce"
    plan = preset(PLANS[name], model, (2,), ((2.0, 1.0),), sync=sync)
    if name == "micro-batches":
        plan = replace(plan, micro_batches=3)
    assert_forecast(Mesh(subcomm(2)), model, plan, batch=32)


SHAPES = {"default": ((1, 28, 28), 10), "alexnet-owt": ((3, 96, 96), 100)}


def assert_forecast(mesh: Mesh, model: Model, plan: Plan, batch: int) -> None:
    """Check that a step's arrays take at most what is forecast, to 5 %."""
    program = compile(model, plan, batch).at(mesh.coords)
    runner = Executor(mesh, load_ops("native"), 0)
    state = initial_state(program.weights, mesh.coords, 0, np.float32)
    x = np.ones((len(program.positions), *model.input_shape), np.float32)
    labels = np.zeros(batch, np.int64)
    runner.train(program, state, x, labels, 0)
    peaks = []
    for step in range(1, 4):
        gc.collect()
        tracemalloc.start()
        runner.train(program, state, x, labels, step)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    measured = min(peaks)  # what threads of earlier tests take at the same time is counted as well
    # beside arrays there are some ten kB of Python's, and small sums of batch norm
    assert step_peak(program, mesh.coords, 4).bytes == pytest.approx(measured, rel=0.05)
