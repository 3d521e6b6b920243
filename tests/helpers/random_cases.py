"""Random networks and plans that divide them, by seed: nobody picked them by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from oracle import run_ranks
from plan_cases import bytes_sent, whole

from mpicnn.comm.mesh import Mesh
from mpicnn.division.branches import branches
from mpicnn.division.checks import groups_of
from mpicnn.division.compile import Options, compile, compile_all
from mpicnn.division.placement import region
from mpicnn.division.plan import INPUT, LOSS, LayerPlan, Plan
from mpicnn.division.presets import BRANCHES, PRESETS, preset
from mpicnn.division.propagation import check_batch
from mpicnn.division.strategy import INPUT_KIND, LOSS_KIND, letters, row
from mpicnn.division.verify import check
from mpicnn.errors import UserError
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
)  # fmt: skip
from mpicnn.models import Model
from mpicnn.ops import load
from mpicnn.step.executor import Executor
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state

OPS = load("numpy")
CLASSES, SEED = 5, 7
SMALL = Options(bucket=32)


@dataclass
class Case:
    """A network, a plan that may not fit it, and the sizes of two batches."""

    model: Model
    plan: Plan
    batches: tuple[int, int]


def draw(seed, graph=False):
    """Return the case of a seed: a chain of layers, or a `graph`."""
    rng = np.random.default_rng(seed)
    # batch normalisation sees the whole batch at once: it forbids rounds and micro-batches
    normalised = bool(rng.random() < 0.4)
    model = (draw_graph if graph else draw_model)(rng, normalised)
    plan = draw_plan(rng, model, cut=not normalised or rng.random() < 0.1)
    batch = int(rng.integers(1, 18) if rng.random() < 0.1 else rng.integers(4, 18))
    return Case(model, plan, (batch, int(rng.integers(1, batch + 1))))


def draw_model(rng, normalised):
    """Return a network of a few random layers that fit each other."""
    shape = (int(rng.integers(1, 4)), int(rng.integers(5, 10)), int(rng.integers(5, 10)))
    image, layers = shape, []
    for number in range(int(rng.integers(0, 5))):
        layer = _image_layer(rng, shape, normalised)
        try:
            shape = layer.out_shape(shape)
        except UserError:
            continue
        layers.append((f"layer{number}", layer))
    layers.append(("flat", Flatten()))
    (features,) = Flatten().out_shape(shape)
    for number in range(int(rng.integers(0, 3))):
        groups = int(rng.choice([g for g in (1, 1, 2, 3) if features % g == 0]))
        features = groups * int(rng.integers(-(-2 // groups), 7 // groups + 1))
        layer = Linear(features, bias=bool(rng.integers(2)), groups=groups)
        layers.append((f"fc{number}", layer))
        if rng.random() < 0.7:
            layer = rng.choice([ReLU(), ReLU(), Dropout(0.3), *[BatchNorm()] * normalised])
            layers.append((f"behind{number}", layer))
    layers.append(("last", Linear(CLASSES, bias=bool(rng.integers(2)))))
    return Model("random", image, tuple(layers))


def draw_graph(rng, normalised, most=14):
    """Return a network whose layers read any earlier ones: skips, branches, gates, joins."""
    image = (int(rng.integers(1, 4)), int(rng.integers(5, 9)), int(rng.integers(5, 9)))
    shapes, layers, unread = {"input": image}, [], {"input"}

    def put(layer, *inputs):
        fed = tuple(shapes[name] for name in inputs)
        name = f"layer{len(layers)}"
        shapes[name] = layer.out_shape(fed if layer.joins else fed[0])
        layers.append((name, layer, inputs))
        unread.difference_update(inputs)
        unread.add(name)
        return name

    for _ in range(int(rng.integers(2, most))):
        names = list(shapes)
        name = names[-1] if rng.random() < 0.5 else str(rng.choice(names))
        shape = shapes[name]
        alike = [n for n in names if shapes[n] == shape]
        near = [n for n in names if shapes[n][1:] == shape[1:]]
        draw = rng.random()
        if draw < 0.25 and len(alike) > 1:
            put(Add(), *map(str, rng.choice(alike, int(rng.integers(2, 4)))))
        elif draw < 0.4 and len(near) > 1:
            put(Concat(), *map(str, rng.choice(near, 2)))
        elif draw < 0.5:
            put(Multiply(), name, put(GlobalAvgPool(), name))
        else:
            layer = _image_layer(rng, shape, normalised)
            if shape[1:] == (1, 1) and getattr(layer, "padding", (0, 0)) != (0, 0):
                continue  # all of its outputs are the bias: what is largest is up to rounding
            try:
                put(layer, name)
            except UserError:
                continue
    ends = [put(GlobalAvgPool(), n) if shapes[n][1:] != (1, 1) else n for n in sorted(unread)]
    y = put(Flatten(), put(Concat(), *ends) if len(ends) > 1 else ends[0])
    if rng.random() < 0.6:
        y = put(Linear(6), y)
        y = put(Add(), y, put(ReLU(), put(Linear(6, groups=int(rng.choice([1, 1, 2, 3]))), y)))
    put(Linear(CLASSES), y)
    return Model("graph", image, tuple(layers))


def _image_layer(rng, shape, normalised):
    kind = rng.choice(
        ["conv", "conv", "conv", "relu", "act", "max", "avg", "lrn", "gn", "drop"]
        + ["bn"] * normalised
    )
    if kind == "conv":
        groups = int(rng.choice([g for g in (1, 1, 2, 3) if shape[0] % g == 0]))
        return Conv(
            groups * int(rng.integers(1, 5)), (int(rng.integers(1, 4)), int(rng.integers(1, 4))),
            stride=int(rng.integers(1, 3)), padding=_padding(rng), groups=groups,
            bias=bool(rng.integers(2)),
        )  # fmt: skip
    if kind == "max":
        ceil_mode, dilation = bool(rng.integers(2)), int(rng.choice([1, 1, 2]))
        return MaxPool(2, int(rng.integers(1, 3)), _padding(rng), ceil_mode, dilation)
    if kind == "gn":
        return GroupNorm(int(rng.choice([g for g in (1, 2, 3) if shape[0] % g == 0])))
    if kind == "act":
        smooth = [SiLU(), GELU(), Tanh(), Sigmoid(), HardSwish(), ReLU6(), LeakyReLU(0.1)]
        return smooth[rng.integers(len(smooth))]
    return {
        "relu": ReLU(), "avg": AvgPool(2, 1), "lrn": LRN(3, 0.3, 0.6), "bn": BatchNorm(),
        "drop": Dropout(0.3),
    }[kind]  # fmt: skip


def _padding(rng):
    """The same on all sides, or not."""
    if rng.random() < 0.8:
        return int(rng.integers(0, 2))
    return tuple(int(p) for p in rng.integers(0, 2, 4))


def draw_plan(rng, model, cut):
    """Return a preset with some layers divided otherwise, in any way that their kind allows."""
    names = [name for name, _ in model.layers]
    stages: tuple[str, ...] = ()
    depth = int(rng.choice([1, 1, 1, 2]))
    if depth == 2 and len(names) > 1:
        stages = (str(rng.choice(names[1:])),)
    grid = tuple(int(n) for n in _grid(rng, 4 if not stages else 2))
    shares = tuple(_shares(rng, n) for n in grid)
    name, scheme = str(rng.choice(PRESETS)), str(rng.choice(["a", "a", "b", "c"]))
    if branches(model) and rng.random() < 0.3:
        name = BRANCHES
    scheme = scheme if cut and name not in ("fc-output", "master-worker") else "a"
    start = preset(name, model, grid, shares, scheme, str(rng.choice(["allreduce", "sharded"])))
    layers = dict(start.layers)
    kinds = {n: layer.kind for n, layer in model.layers} | {INPUT: INPUT_KIND, LOSS: LOSS_KIND}
    groups = {n: groups_of(layer) for n, layer in model.layers}
    for layer, kind in kinds.items():
        if rng.random() < (0.25 if groups.get(layer, 1) == 1 else 0.5):
            split = "".join(_letter(rng, kind, ranks, groups.get(layer, 1)) for ranks in grid)
            own = tuple(_shares(rng, n) for n in grid) if rng.random() < 0.5 else None
            layers[layer] = LayerPlan(split, own, str(rng.choice(["use", "use", "first"])))
    order = str(rng.choice(["1f1b", "gpipe"]))
    normalised = "micro" if rng.random() < 0.3 else "batch"
    parts = int(rng.choice([1, 1, 2, 3])) if cut or normalised == "micro" else 1
    return Plan(grid, shares, layers, scheme, start.sync, name, stages, parts, order, normalised)


def _letter(rng, kind, ranks, groups):
    """Mostly a letter that a layer of so many groups can be divided by, now and then another."""
    able = letters(kind)
    if rng.random() < 0.95:
        able = [
            name for name in able
            if not row(kind, name).grouped or groups > 1
            if not row(kind, name).divides_inputs or groups == 1
        ]  # fmt: skip
    letter = str(rng.choice(able))
    return f"{letter}@{rng.integers(ranks)}" if letter == "m" and rng.random() < 0.6 else letter


def _grid(rng, most):
    if rng.random() < 0.6:
        return (rng.integers(1, most + 1),)
    return [(1, most), (most, 1), (2, most // 2), (2, most // 2)][rng.integers(4)]


def _shares(rng, ranks):
    """Equal, unequal, empty, tiny and huge."""
    shares = rng.choice([1.0, 1.0, 2.0, 0.0, 1e-6, 300.0], ranks)
    return tuple(float(s) for s in shares) if shares.any() else (1.0,) * ranks


def train(comm, case, plan, backend=OPS):
    """Return losses, parts of the final state, and bytes sent and predicted on this rank."""
    mesh = Mesh(comm, plan.grid, plan.depth)
    executor = Executor(mesh, backend, SEED)
    made = {n: compile(case.model, plan, n, mesh.stage, SMALL) for n in set(case.batches)}
    programs = [made[n].at(mesh.coords) for n in case.batches]
    weights = programs[0].weights
    state = initial_state(weights, mesh.coords, SEED, np.float64)
    specs = {w.name: w.param for w in weights}
    optimiser = Optimiser(backend, state, specs, Hyper(0.05, 0.9, 0.01, 2.0), len(programs))
    rng = np.random.default_rng(SEED)
    losses, predicted = [], 0.0
    for number, program in enumerate(programs):
        x = rng.standard_normal((program.count, *case.model.input_shape))
        labels = rng.integers(CLASSES, size=program.count)
        sums = executor.step(program, optimiser, x[program.positions], labels, number)
        losses.append(sums[0] / program.count)
        predicted += bytes_sent(made[program.count], mesh.coords, 8)
    held = state.params | state.buffers
    parts = {
        w.name: (w.param.shape, region(w.param.shape, w.home, mesh.coords), held[w.name])
        for w in weights
    }
    return losses, parts, None, mesh.sent, predicted


def refusal(case):
    """Return the one line that refuses the case's plan, "" where it is accepted."""
    try:
        check_batch(case.model, case.plan, case.batches[0])
        for count in set(case.batches):
            check(compile_all(case.model, case.plan, count, SMALL))
            if case.plan.scheme != "a" and case.plan.micro_batches == 1:
                # weights that change by round are not those of one rank; their programs must fit
                check(compile_all(case.model, case.plan, count, SMALL._replace(by_round=True)))
    except UserError as error:
        return str(error)
    return ""


def alone(case):
    """Return the plan of one rank that normalises over the same parts of the batch."""
    parts = case.plan.micro_batches if case.plan.batch_norm == "micro" else 1
    plan = preset("data", case.model, (1,))
    return replace(plan, micro_batches=parts, batch_norm=case.plan.batch_norm)


def one_rank(case):
    """Return what one rank makes of a case, whatever its plan."""
    return run_ranks(1, lambda comm: train(comm, case, alone(case)))


def compare_with_one_rank(case, reference=None):
    """Check that a case trains as one rank does, or is refused in one line, which is returned."""
    if line := refusal(case):
        assert "\n" not in line
        return line
    reference = reference or one_rank(case)
    results = run_ranks(case.plan.ranks, lambda comm: train(comm, case, case.plan))
    for losses, _, _, sent, predicted in results:
        np.testing.assert_allclose(losses, reference[0][0], rtol=1e-12)
        np.testing.assert_allclose(sent, predicted, rtol=1e-12)
    ours = whole(results)
    for name, array in whole(reference).items():
        # a bias in front of batch normalisation has no gradient: its noise is not compared
        error = np.linalg.norm(ours[name] - array) / max(1.0, np.linalg.norm(array))
        assert error <= 1e-12, f"{name}: {error:.2e}"
    return ""
