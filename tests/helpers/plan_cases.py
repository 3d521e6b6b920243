"""A network with all kinds of layers, plans that divide it, and what all of them must agree on."""

import numpy as np
import pytest

from mpicnn import ops as backends
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.choice import Device
from mpicnn.division.compile import Options, compile, compile_all
from mpicnn.division.placement import region
from mpicnn.division.plan import LayerPlan, Plan, equal_shares
from mpicnn.division.presets import PRESETS, preset
from mpicnn.division.verify import check
from mpicnn.forecast.cost import step_costs
from mpicnn.layers import (
    LRN,
    AvgPool,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    Linear,
    MaxPool,
    ReLU,
)
from mpicnn.layers.loss import PLAIN
from mpicnn.models import Model
from mpicnn.step.executor import Executor
from mpicnn.step.norms import Norms
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state, kept_by

CLASSES, BATCH, RAGGED, STEPS, SEED = 5, 11, 2, 6, 3
IMAGE = (3, 9, 7)
SMALL = Options(bucket=64)


def network(normalised=True):
    """All kinds of layers, odd sizes, groups that shares cut through."""
    model = Model(
        "all-layers",
        IMAGE,
        (
            ("conv1", Conv(6, 3, padding=1, bias=False)),
            ("bn1", BatchNorm()),
            ("relu1", ReLU()),
            ("norm1", LRN(3, alpha=0.3, beta=0.6)),
            ("pool1", MaxPool(3, 2, ceil_mode=True)),
            (
                "conv2",
                Conv(9, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=3, bias=False),
            ),
            ("bn2", BatchNorm()),
            ("relu2", ReLU()),
            ("drop2", Dropout(0.2)),
            ("pool2", AvgPool(2, 1)),
            ("flat", Flatten()),
            ("fc3", Linear(7)),
            ("relu3", ReLU()),
            ("drop3", Dropout(0.5)),
            ("fc4", Linear(6)),
            ("relu4", ReLU()),
            ("fc5", Linear(CLASSES)),
        ),
    )
    # Batch normalisation sees the whole batch at once, so that micro-batches do without it.
    kept = [each for each in model.layers if normalised or not isinstance(each[1], BatchNorm)]
    return Model(model.name, IMAGE, tuple(kept))


def batches(dtype, steps=STEPS, image=IMAGE):
    rng = np.random.default_rng(0)
    for step in range(steps):
        # A ragged batch now and then, smaller than some numbers of ranks.
        count = (BATCH, BATCH, RAGGED)[step % 3]
        yield (
            step,
            rng.standard_normal((count, *image)).astype(dtype),
            rng.integers(CLASSES, size=count),
        )


CPU = Device(backends.load("numpy"))


HYPER = Hyper(0.05, 0.9, 0.01, 2.0)


def train(
    comm, plan, dtype=np.float64, model=None, device=CPU, progress="poll", steps=STEPS,
    hyper=HYPER, loss=PLAIN,
):  # fmt: skip
    """Return losses, the final state as whole arrays, and bytes sent and predicted."""
    ops = device.ops
    mesh = Mesh(comm, plan.grid, plan.depth, progress, device.wires)
    model = model or network()
    runner = Executor(mesh, ops, SEED, loss=loss)
    made = {n: compile(model, plan, n, mesh.stage, SMALL) for n in (BATCH, RAGGED)}
    programs = {n: program.at(mesh.coords) for n, program in made.items()}
    if comm.Get_rank() == 0:
        for count in programs:
            check(compile_all(model, plan, count, SMALL))
    weights = programs[BATCH].weights
    kept = kept_by(hyper.optimiser, hyper.ema)
    state = initial_state(weights, mesh.coords, SEED, dtype, kept).on(ops)
    specs = {w.name: w.param for w in weights}
    norms = Norms.of(model.param_specs(), weights, mesh.coords)
    optimiser = Optimiser(ops, state, specs, hyper, steps, norms=norms)
    losses, predicted = [], 0.0
    for step, x, labels in batches(dtype, steps, model.input_shape):
        program = programs[len(x)]
        mine = ops.xp.asarray(x[program.positions])
        losses.append(runner.step(program, optimiser, mine, labels, step)[0] / len(labels))
        predicted += bytes_sent(made[len(x)], mesh.coords, np.dtype(dtype).itemsize)
    sent = mesh.sent
    parts = {}
    for weight in weights:
        box = region(weight.param.shape, weight.home, mesh.coords)
        for section, held in vars(state).items():
            if weight.name in held:
                part = ops.fetch(held[weight.name])()
                parts[f"{section}/{weight.name}"] = (weight.param.shape, box, part)
    x, labels = next(iter(batches(dtype, image=model.input_shape)))[1:]
    x = ops.xp.asarray(x[programs[BATCH].positions])
    totals = runner.evaluate(programs[BATCH], state.tested, x, labels)
    tested = mesh.sum(totals.read()).wait()
    return losses, parts, tested, sent, predicted


def bytes_sent(program, coords, itemsize):
    """Return the bytes that the rank at `coords` is said to send in a step."""
    rank = np.ravel_multi_index(coords, program.grid)
    return sum(cost.work.bytes_sent[rank] for cost in step_costs(program, itemsize))


def whole(results):
    """Put every rank's parts together; where several ranks hold the same, they must agree."""
    arrays = {}
    for _, parts, *_ in results:
        for name, (shape, box, part) in parts.items():
            array = arrays.setdefault(name, np.full(shape, np.nan))
            index = tuple(slice(lo, hi) for lo, hi in box)
            known = ~np.isnan(array[index])
            np.testing.assert_array_equal(array[index][known], part[known])
            array[index] = part
    assert not any(np.isnan(a).any() for a in arrays.values())
    return arrays


def compare(results, reference, tolerance):
    losses, _, tested, *_ = reference[0]
    for result in results:
        np.testing.assert_allclose(result[0], losses, rtol=tolerance)
        np.testing.assert_allclose(result[2], tested, rtol=tolerance)
    ours, theirs = whole(results), whole(reference)
    for name, array in theirs.items():
        error = np.linalg.norm(ours[name] - array) / (np.linalg.norm(array) or 1.0)
        assert error <= tolerance, f"{name}: {error:.2e}"


def mixed(grid):
    """Divide neighbouring layers in every way: o then c saves a move, c ends in a pending sum."""
    three = tuple(float(rank < 3) for rank in range(grid[0]))
    return Plan(
        grid, equal_shares(grid),
        {
            "conv1": LayerPlan("c", (three,)), "norm1": LayerPlan("m"), "conv2": LayerPlan("o"),
            "fc3": LayerPlan("o"), "fc4": LayerPlan("c", home="first"), "fc5": LayerPlan("m"),
        },
        name="mixed",
    )  # fmt: skip


SHARES = {
    1: [(1,)],
    2: [(1, 1), (3, 1), (0, 1)],
    3: [(1, 1, 1), (1, 0, 3)],
    4: [(1, 1, 1, 1), (0, 1, 2, 4)],
}
CASES = [
    pytest.param(name, sync, scheme, (ranks,), (shares,), id=f"{name}-{sync}-{scheme}-{shares}")
    for ranks, all_shares in SHARES.items()
    for shares in all_shares
    for name in (*PRESETS, "mixed")
    for sync in ("allreduce", "sharded")
    for scheme in ("a", "b", "c")
    if scheme == "a" or name == "owt"
    if sync == "allreduce" or name in ("data", "owt", "filter")
]
GRIDS = [
    pytest.param(name, sync, scheme, (2, 2), shares, id=f"{name}-{sync}-{scheme}-{shares}")
    for shares in (((1, 1), (1, 1)), ((2, 1), (1, 3)))
    for name in PRESETS
    for sync in ("allreduce", "sharded")
    for scheme in (("a", "b", "c") if name == "owt" else ("a",))
]


def make(name, grid, shares, scheme, sync):
    if name == "mixed":
        return mixed(grid)
    return preset(name, network(), grid, shares, scheme, sync)
