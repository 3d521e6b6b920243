"""What a frozen layer does and does not do, which layers a pattern means, and PyTorch's opinion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import network, train
from random_cases import SEED

from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.layers import BatchNorm, Conv, Flatten, GroupNorm, Linear, ReLU
from mpicnn.layers.base import Context, Layer
from mpicnn.models import Model, freeze
from mpicnn.ops import load
from mpicnn.settings import definitions as config
from mpicnn.step.executor import Executor
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state


def test_others_train_as_pytorch_does_with_parameters_that_want_no_gradient() -> None:
    """Frozen batch norm is PyTorch's under `eval()`: its running statistics stay and are used."""
    torch = pytest.importorskip("torch")
    free = Model(
        "torch",
        (3, 9, 7),
        (
            ("conv1", Conv(4, 3, bias=False)),
            ("bn1", BatchNorm()),
            ("relu1", ReLU()),
            ("conv2", Conv(5, 2)),
            ("bn2", BatchNorm()),
            ("conv3", Conv(3, 2, bias=False)),
            ("bn3", BatchNorm()),
            ("flat", Flatten()),
            ("fc4", Linear(6)),
            ("fc5", Linear(5)),
        ),
    )
    model = freeze(free, "*1,*3,fc4")
    nn = torch.nn
    theirs = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 2),
        nn.BatchNorm2d(5), nn.Conv2d(5, 3, 2, bias=False), nn.BatchNorm2d(3), nn.Flatten(),
        nn.Linear(45, 6), nn.Linear(6, 5),
    ).double()  # fmt: skip
    names = {"w": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean": "running_mean",
             "var": "running_var"}  # fmt: skip
    places = {
        full: (at, names[full.rsplit(".", 1)[1]])
        for at, (name, _) in enumerate(model.layers)
        for full in model.param_specs() | model.buffer_specs()
        if full.rsplit(".", 1)[0] == name
    }

    def tensor(full: str) -> Any:
        at, name = places[full]
        return getattr(theirs[at], name)

    program = compile(model, preset("data", model, (1,)), 6).at((0,))
    state = initial_state(program.weights, (0,), SEED, np.float64)
    rng = np.random.default_rng(0)
    for name in model.param_specs():  # biases and gammas that are not 0 and 1
        state.params[name] += 0.1 * rng.standard_normal(state.params[name].shape)
    for name in model.buffer_specs():
        state.buffers[name] += 0.3 * rng.random(state.buffers[name].shape)
    before = {n: a.copy() for n, a in (state.params | state.buffers).items()}
    with torch.no_grad():
        for full, array in (state.params | state.buffers).items():
            tensor(full)[...] = torch.from_numpy(array)
    for (name, _), module in zip(model.layers, theirs, strict=True):
        if name in model.frozen:
            module.eval().requires_grad_(False)
    hyper = Hyper(0.05, 0.9, 0.01)
    specs = model.learnt(model.param_specs())
    groups = [
        {"params": [tensor(n) for n, p in specs.items() if p.bias is bias], "weight_decay": decay}
        for bias, decay in ((False, 0.01), (True, 0.0))
    ]
    rule = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    ours = Optimiser(load("numpy"), state, specs, hyper, 3)

    def step(comm: Any) -> None:
        executor = Executor(Mesh(comm, (1,)), load("numpy"), SEED)
        for number in range(3):
            x, labels = rng.standard_normal((6, 3, 9, 7)), rng.integers(5, size=6)
            executor.step(program, ours, x, labels, number)
            rule.zero_grad()
            logits = theirs(torch.from_numpy(x))
            nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
            rule.step()

    run_ranks(1, step)
    for full, array in (state.params | state.buffers).items():
        found = tensor(full).detach().numpy()
        if full.rsplit(".", 1)[0] in model.frozen:
            np.testing.assert_array_equal(array, before[full])
            np.testing.assert_array_equal(found, before[full])
        else:
            assert not np.array_equal(array, before[full])
            # float64; sums of 3 steps in another order
            np.testing.assert_allclose(array, found, rtol=1e-10, atol=1e-12)


class Counting(Conv):
    """Say which gradients it is asked for."""

    asked: list[tuple[bool, bool, bool]] = []

    def backward(self, ops, dy, tape, p, ctx):
        self.asked.append((ctx.train, ctx.need_dx, ctx.need_dw))
        dx, grads = super().backward(ops, dy, tape, p, ctx)
        assert bool(grads) == ctx.need_dw and (dx is not None) == ctx.need_dx
        return dx, grads


def test_a_frozen_layer_is_not_asked_for_its_gradients() -> None:
    Counting.asked = []
    model = Model(
        "asked",
        (3, 9, 7),
        (("conv1", Conv(2, 1)), ("conv2", Counting(3, 3)), ("flat", Flatten()), ("fc", Linear(5))),
    )
    one = preset("data", model, (1,))
    for patterns, expected in (("conv2", (False, True, False)), ("conv1", (True, False, True))):
        Counting.asked.clear()
        frozen = freeze(model, patterns)
        run_ranks(1, lambda comm, frozen=frozen: train(comm, one, model=frozen, steps=1))
        assert Counting.asked == [expected]
    Counting.asked.clear()
    frozen = freeze(model, "conv*")
    run_ranks(1, lambda comm: train(comm, one, model=frozen, steps=1))
    assert Counting.asked == []


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", ["conv", "linear", "bn", "gn"])
def test_layers_leave_out_what_is_not_wanted(backend, name) -> None:
    ops = load(backend)
    layer: Layer = {"conv": Conv(6, 3, groups=2), "linear": Linear(5), "bn": BatchNorm(),
                    "gn": GroupNorm(2)}[name]  # fmt: skip
    shape = (4,) if name == "linear" else (4, 5, 3)
    rng = np.random.default_rng(0)
    specs = layer.params(shape) | layer.buffers(shape)
    p = {n: rng.random(s.shape) + 0.5 for n, s in specs.items()}
    images = rng.standard_normal((3, *shape))
    found = []
    for need_dw in (True, False):
        out = layer.out_shape(shape)
        ctx = Context(False, 0, 0, 0, 3, np.arange(3), (0, out[0]), need_dw=need_dw)
        x = images.copy()
        y, made = layer.forward(ops, x, p, ctx)
        found.append(layer.backward(ops, np.ones_like(y), layer.tape(x, y, made), p, ctx))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1].keys() == layer.params(shape).keys() and not found[1][1]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("konv1", r"freeze konv1: no layer of all-layers is called so; .* conv1, conv2"),
        ("conv1,fc9*", r"freeze fc9\*: no layer .*: fc5, fc4 and fc3"),
        ("CONV*", r"freeze CONV\*: no layer"),
        ("relu*", r"freeze relu\*: fits only layers without weights, like relu1; .* like conv1"),
        ("*", r"freeze \*: freezes all layers of all-layers.*last one out, fc5"),
        ("conv*,bn*,fc*", r"freezes all layers"),
    ],
)
def test_patterns_that_freeze_nothing_or_all_are_refused_in_one_line(patterns, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        freeze(network(), patterns)
    assert "\n" not in str(caught.value) and caught.value.code == 2


def test_patterns() -> None:
    assert freeze(network(), "").frozen == frozenset()
    assert freeze(network(), "*1").frozen == {"conv1", "bn1"}
    assert freeze(network(), "fc[!5]").frozen == {"fc3", "fc4"}
    assert freeze(network(), "?n?").frozen == {"bn1", "bn2"}
    model = network()
    assert freeze(model, "bn*").describe() == model.describe()


def test_patterns_of_layers_are_text_or_a_list(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for text in ('"conv*, bn[!1]"', '["conv*", "bn[!1]"]'):
        file.write_text(f"freeze = {text}\n")
        assert config.parse([str(file)], "train", {}).freeze == "conv*,bn[!1]"
    assert config.parse(["--freeze", "fc?"], "plan", {}).freeze == "fc?"
    for text in ("conv*,,bn1", ",", "conv 1", "a/b"):
        with pytest.raises(UserError, match=r"--freeze .* names of layers, or patterns like"):
            config.parse(["--freeze", text], "train", {})
