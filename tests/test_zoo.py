"""Named networks with branches: parameters, losses and gradients are torchvision's."""

import math

import numpy as np
import pytest
from backends import torchvision
from oracle import run_ranks
from zoo_cases import narrow

from mpicnn import ops as backends
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.layers import BatchNorm
from mpicnn.models import load
from mpicnn.step.executor import Executor
from mpicnn.step.initial import initial_rows
from mpicnn.step.state import State

CROP, CIFAR = (3, 224, 224), (3, 32, 32)
OPS = backends.load("numpy")
# name: what torchvision calls it, the images to compare on, how much narrower
THEIRS = {
    "vgg11": ("vgg11", (3, 33, 35), 16),
    "vgg16": ("vgg16", (3, 33, 35), 16),
    "vgg16-bn": ("vgg16_bn", (3, 65, 67), 16),
    "resnet18": ("resnet18", (3, 65, 67), 8),
    "resnet34": ("resnet34", (3, 65, 67), 8),
    "resnet50": ("resnet50", (3, 65, 67), 8),
    "googlenet": ("googlenet", (3, 65, 67), 8),
    "densenet121": ("densenet121", (3, 65, 67), 8),
    "mobilenet-v2": ("mobilenet_v2", (3, 65, 67), 8),
    "squeezenet": ("squeezenet1_1", (3, 65, 67), 8),
}


ATTRIBUTES = {"w": "weight", "gamma": "weight", "b": "bias", "beta": "bias"}


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def vision(torch):
    return torchvision("models")


def build(vision, torch, name, **settings):
    """Return torchvision's network for 224x224 crops, its parameters without values yet."""
    if name == "googlenet":
        settings |= {"aux_logits": False, "init_weights": False}
    with torch.device("meta"):
        return getattr(vision, name)(**settings)


def cifar(torch, vision, blocks):
    """Return He et al.'s network for CIFAR-10 from torchvision's parts."""
    with torch.device("meta"):
        net = vision.ResNet(vision.resnet.BasicBlock, [blocks] * 4, num_classes=10)
        net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = net.layer4 = torch.nn.Identity()
    return net


@pytest.mark.parametrize("name", THEIRS)
def test_parameters_are_those_of_torchvision(name, torch, vision):
    ours = load(name, CROP, 1000).param_specs().values()
    theirs = build(vision, torch, THEIRS[name][0]).parameters()
    assert [p.shape for p in ours] == [tuple(p.shape) for p in theirs]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Table 6 of the paper has 0.27M and 0.85M; convolutions in shortcuts are 2,752 more.
        ("resnet20", 269_722 + 2_752),
        ("resnet56", 853_018 + 2_752),
    ],
)
def test_residual_networks_for_cifar_have_the_published_size(name, expected):
    specs = load(name, CIFAR, 10).param_specs().values()
    assert sum(math.prod(param.shape) for param in specs) == expected


def draw(model):
    """Return parameters of the size of He's, so that no signal dies out, and none at 0 or 1."""
    rng, params = np.random.default_rng(3), {}
    for name, spec in model.param_specs().items():
        values = rng.standard_normal(spec.shape)
        if name.endswith(".gamma"):
            params[name] = 1 + 0.2 * values
        else:
            params[name] = values * (0.3 if spec.bias else math.sqrt(2 / spec.fan_in))
    return params


def fill(torch, net, model, params):
    """Give torchvision's network our parameters, and so our widths; return its modules by ours."""
    filled = {}
    modules = [m for m in net.modules() if any(True for _ in m.parameters(recurse=False))]
    names = [name.rpartition(".")[0] for name in params if name.endswith((".w", ".gamma"))]
    for name, module in zip(names, modules, strict=True):
        layer = dict(model.layers)[name]
        given = {a: params[f"{name}.{k}"] for k, a in ATTRIBUTES.items() if f"{name}.{k}" in params}
        assert given.keys() == {key for key, _ in module.named_parameters(recurse=False)}
        for attribute, array in given.items():
            setattr(module, attribute, torch.nn.Parameter(torch.tensor(array)))
        if isinstance(layer, BatchNorm):
            module.running_mean = torch.zeros(len(given["bias"]), dtype=torch.float64)
            module.running_var = torch.ones(len(given["bias"]), dtype=torch.float64)
            module.num_batches_tracked = torch.tensor(0)
        elif hasattr(module, "groups"):
            module.groups = layer.groups
        filled[name] = module
    return filled


def ours(model, params, x, labels):
    """Return the mean loss, its gradients, and the running statistics after it."""
    buffers = {
        name: initial_rows(spec, 0, name, (0, spec.shape[0]), np.float64)
        for name, spec in model.buffer_specs().items()
    }
    program = compile(model, preset("data", model, (1,)), len(x)).at((0,))

    def main(comm):
        runner = Executor(Mesh(comm), OPS, seed=0)
        return runner.train(program, State(params, {}, buffers), x, labels, 0)

    ((grads, totals),) = run_ranks(1, main)
    return totals.read()[0] / len(x), grads, buffers


def compare(torch, net, model):
    """Check that loss, gradients and running statistics of one step are the same."""
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    params = draw(model)
    modules = fill(torch, net, model, params)
    rng = np.random.default_rng(99)
    x, labels = rng.standard_normal((4, *model.input_shape)), np.array([4, 0, 6, 4])

    loss, grads, buffers = ours(model, params, x, labels)
    logits = net.train()(torch.tensor(x))
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    expected.backward()

    # Sums of some hundred products in another order, layer upon layer of up to 120.
    assert loss == pytest.approx(expected.item(), rel=1e-11)
    for name, module in modules.items():
        for key, attribute in ATTRIBUTES.items():
            if (full := f"{name}.{key}") in params:
                want = getattr(module, attribute).grad.numpy()
                size = np.linalg.norm(want)
                # What batch norm takes away again has no gradient: its noise is not compared.
                assert size > 1e-6 or key in ("b", "beta")
                error = np.linalg.norm(grads[full] - want)
                assert error <= 1e-11 * max(size, 0.01), f"{full}: {error:.2e} of {size:.2e}"
        if f"{name}.mean" in buffers:
            for key, theirs in (("mean", module.running_mean), ("var", module.running_var)):
                np.testing.assert_allclose(buffers[f"{name}.{key}"], theirs.numpy(), 1e-10, 1e-12)


@pytest.mark.parametrize("name", THEIRS)
def test_loss_and_gradients_are_those_of_torchvision(name, torch, vision):
    theirs, image, divisor = THEIRS[name]
    net = build(vision, torch, theirs)
    if name.startswith("vgg"):
        net.avgpool = torch.nn.Identity()
    compare(torch, net, narrow(name, image, 7, divisor, dropout=False))


@pytest.mark.parametrize(("name", "blocks"), [("resnet20", 3), ("resnet56", 9)])
def test_residual_networks_for_cifar_are_made_of_torchvisions_blocks(name, blocks, torch, vision):
    compare(torch, cifar(torch, vision, blocks), narrow(name, (3, 17, 19), 7, 4))


def test_residual_blocks_start_as_nothing():
    model = load("resnet50", CROP, 1000)
    zeros = [n for n, p in model.param_specs().items() if n.endswith("gamma") and p.init == "zeros"]
    adds = [node for node in model.describe() if node["type"] == "add"]
    assert len(zeros) == 3 + 4 + 6 + 3
    assert [name.removesuffix(".gamma") for name in zeros] == [add["inputs"][0] for add in adds]
    with pytest.raises(UserError, match='BatchNorm: init is 0: give "ones" or "zeros"'):
        BatchNorm(init=0)
