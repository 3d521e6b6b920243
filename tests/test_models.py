"""Networks: what their papers say of them, their descriptions, and users' own files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpicnn.ops.numpy as ops
from mpicnn.errors import UserError
from mpicnn.layers import (
    LRN,
    Array,
    BatchNorm,
    Context,
    Conv,
    Dropout,
    Flatten,
    Layer,
    Linear,
    MaxPool,
    ReLU,
    Shape,
    SoftmaxCrossEntropy,
)
from mpicnn.models import NAMES, Model, load
from mpicnn.step.initial import initial_rows

CIFAR, GRAY, CROP = (3, 32, 32), (1, 28, 28), (3, 224, 224)


def weights(model: Model) -> int:
    return sum(math.prod(param.shape) for param in model.param_specs().values())


def shape_after(model: Model, name: str) -> Shape:
    return model.shapes[[other for other, _ in model.layers].index(name) + 1]


@pytest.mark.parametrize(
    ("name", "input_shape", "classes", "expected"),
    [
        # LeCun et al. 1998: 156, 2416 with the whole connection table, 48120, 10164, 850.
        ("lenet5", GRAY, 10, 156 + 2416 + 48120 + 10164 + 850),
        ("lenet5", (1, 32, 32), 10, 156 + 2416 + 48120 + 10164 + 850),
        # Marques: 5x5 kernels on 3 and 500 maps, 8x8 maps into the classes.
        ("marques-500-1500", CIFAR, 10, 76 * 500 + 12501 * 1500 + 96001 * 10),
        # Caffe's cifar10_quick, which is cuda-convnet's layers-80sec.
        ("cuda-convnet", CIFAR, 10, 145_578),
        # The one tower with conv4 of 256 as torchvision has it, without LRN.
        ("alexnet-owt-code", CROP, 1000, 61_100_840),
        ("alexnet-owt", CROP, 1000, 61_100_840 + 128 * (9 * 384 + 1) + 256 * 9 * 128),
        # Caffe's bvlc_alexnet; "60 million" in the paper.
        ("alexnet", CROP, 1000, 60_965_224),
        # "133 million" in the paper's table 2.
        ("vgg11", CROP, 1000, 132_863_336),
        # Kernels of 5x5, then of 3x3, and 32 maps of 4x4, or of 3x3 from 28x28.
        ("alexnet-cifar", CIFAR, 10, 76 * 16 + 41_616 + 513 * 512 + 513 * 512 + 513 * 10),
        ("alexnet-cifar", GRAY, 10, 26 * 16 + 41_616 + 289 * 512 + 513 * 512 + 513 * 10),
    ],
)
def test_published_numbers_of_weights(
    name: str, input_shape: Shape, classes: int, expected: int
) -> None:
    model = load(name, input_shape, classes)
    assert weights(model) == expected
    assert model.classes == classes


@pytest.mark.parametrize(
    ("name", "input_shape", "after", "expected"),
    [
        ("lenet5", GRAY, "pool2", (16, 5, 5)),
        ("marques-500-1500", CIFAR, "pool1", (500, 16, 16)),
        ("marques-50-500", CIFAR, "norm2", (500, 16, 16)),
        ("cuda-convnet", CIFAR, "pool1", (32, 16, 16)),
        ("cuda-convnet", CIFAR, "pool3", (64, 4, 4)),
        ("alexnet-owt", CROP, "conv1", (64, 55, 55)),
        ("alexnet-owt", CROP, "conv4", (384, 13, 13)),
        ("alexnet", CROP, "pool5", (256, 6, 6)),
        ("alexnet-cifar", CIFAR, "pool5", (32, 4, 4)),
        ("alexnet-cifar", GRAY, "pool5", (32, 3, 3)),
        ("vgg11", CROP, "pool8", (512, 7, 7)),
        ("vgg11", (3, 64, 64), "pool8", (512, 2, 2)),
    ],
)
def test_maps_have_the_published_sizes(
    name: str, input_shape: Shape, after: str, expected: Shape
) -> None:
    assert shape_after(load(name, input_shape, 10), after) == expected


@pytest.mark.parametrize("name", NAMES)
def test_named_networks_fit_images_and_classes(name: str) -> None:
    model = load(name, (5, 67, 71), 7)
    assert model.name == name
    assert model.shapes[0] == (5, 67, 71)
    assert model.shapes[-1] == (7,)
    normalised = {n for n, layer in model.layers if isinstance(layer, BatchNorm)}
    assert {buffer.rpartition(".")[0] for buffer in model.buffer_specs()} == normalised


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_survive_json_and_toml(name: str, tmp_path: Path) -> None:
    model = load(name, (3, 65, 65), 7)
    description = json.loads(json.dumps(model.describe()))
    assert description == model.describe()
    assert Model.from_description(name, [3, 65, 65], description) == model
    path = tmp_path / f"{name}.toml"
    path.write_text(model.to_toml())
    assert load(path, (3, 65, 65), 7) == model


def test_fc_segment_starts_at_the_flatten_before_the_first_linear() -> None:
    layers = load("alexnet", CROP, 10).layers
    assert layers[load("alexnet", CROP, 10).fc_start][0] == "flatten"

    def start(*layers: Layer, shape: Shape = (2, 1, 1)) -> int:
        return Model("m", shape, tuple((f"l{i}", layer) for i, layer in enumerate(layers))).fc_start

    assert start(ReLU(), Flatten(), Dropout(), Linear(3), Linear(4)) == 1
    assert start(Flatten(), ReLU(), Flatten(), Linear(3), Flatten(), Linear(4)) == 2
    assert start(ReLU(), Linear(3), shape=(2,)) == 1
    assert start(Conv(3, 1), Flatten()) == 2


def test_param_and_buffer_specs_are_named_by_layer() -> None:
    model = Model(
        "m",
        (3, 8, 8),
        (("conv1", Conv(4, 3, bias=False)), ("bn1", BatchNorm()), ("flat", Flatten()),
         ("fc2", Linear(5))),
    )  # fmt: skip
    shapes = {name: param.shape for name, param in model.param_specs().items()}
    assert shapes.pop("conv1.w") == (4, 3, 3, 3)
    assert (shapes.pop("fc2.w"), shapes.pop("fc2.b")) == ((5, 4 * 36), (5,))
    assert set(shapes.values()) == {(4,)}
    assert all(name.startswith("bn1.") for name in shapes)
    assert {p.shape for p in model.buffer_specs().values()} == {(4,)}


def expect_error(message: str) -> Any:
    return pytest.raises(UserError, match=message)


def test_layer_names_are_unique_and_plain() -> None:
    with expect_error("network m: 2 layers named 'a'"):
        Model("m", (1, 1, 1), (("a", Flatten()), ("a", Linear(2))))
    with expect_error("layer name 'fc.1'"):
        Model("m", (1, 1, 1), (("a", Flatten()), ("fc.1", Linear(2))))


def test_a_kernel_larger_than_the_image_names_network_and_layer() -> None:
    with expect_error(r"network default, layer conv2: .*kernel"):
        load("default", (1, 8, 8), 10)


def test_a_network_ends_in_one_number_per_class() -> None:
    with expect_error("fully connected"):
        Model("m", (1, 4, 4), (("conv1", Conv(10, 3)),))
    with expect_error("fully connected"):
        Model("m", (1, 4, 4), ())


@pytest.mark.parametrize(("shape", "classes"), [((28, 28), 10), ((1, 0, 28), 10), (GRAY, 0)])
def test_impossible_inputs(shape: Shape, classes: int) -> None:
    with expect_error("expected"):
        load("default", shape, classes)


def test_unknown_names_list_the_known() -> None:
    with expect_error("unknown network 'alexnt'.*alexnet-owt.*vgg11"):
        load("alexnt", CIFAR, 10)
    with expect_error("nowhere.py: no such file"):
        load("nowhere.py", CIFAR, 10)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_python_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.py",
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "from mpicnn.layers import Conv, Flatten, Layer, Linear\n"
        "@dataclass(frozen=True)\n"
        "class Own(Layer):\n"
        "    kind: ClassVar[str] = 'examplewise'\n"
        "    size: int = 3\n"
        "def model(input_shape, classes):\n"
        "    c, h, w = input_shape\n"
        "    yield 'conv1', Conv(2 * c, (h, w))\n"
        "    yield 'own1', Own()\n"
        "    yield 'flatten', Flatten()\n"
        "    yield 'fc2', Linear(classes)\n",
    )
    model = load(str(path), (3, 5, 4), 7)
    assert model.name == "mine"
    assert model.shapes == ((3, 5, 4), (6, 1, 1), (6, 1, 1), (6,), (7,))
    assert model.describe()[1] == {"name": "own1", "type": "Own", "size": 3}
    with expect_error("layer 2: type 'Own', expected one of add, avgpool"):
        Model.from_description("mine", (3, 5, 4), model.describe())


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("overwrites = 'made'", "layer own: overwrites 'made', expected True or False$"),
        ("joins = 1", "layer own: joins 1, expected True or False$"),
        ("kind = ['channelwise']", "layer own: kind .*, expected one of contraction, channel"),
        ("reads = 'x'", "layer own: reads 'x', expected a set of none or more of x, y$"),
        ("views = {'x'}", "layer own: views {'x'}, expected a set of none or more of dx, y$"),
    ],
)
def test_attributes_that_programs_believe_are_checked(
    attribute: str, message: str, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "mine.py",
        "from mpicnn.layers import Flatten, Layer, Linear\n"
        "class Own(Layer):\n"
        f"    {attribute}\n"
        "def model(input_shape, classes):\n"
        "    return [('own', Own()), ('flatten', Flatten()), ('fc1', Linear(classes))]\n",
    )
    with expect_error(message):
        load(str(path), (3, 5, 4), 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def model(input_shape, classes)\n", "mine.py, line 1: SyntaxError: expected ':'$"),
        ("\nimport no_such_module\n", "mine.py, line 2: ModuleNotFoundError"),
        ("def model(shape, classes):\n    return [\n        shape / 2]\n", "line 3: TypeError"),
        ("model = 3\n", "mine.py: defines no function"),
        ("def model(shape):\n    return []\n", "mine.py: TypeError.*1 positional"),
        ("def model(shape, classes):\n    return None\n", "mine.py: TypeError.*not iterable"),
        ("def model(shape, classes):\n    return [('fc1', 3)]\n", "item 1 .*expected"),
        (
            "from mpicnn.layers import Conv\n"
            "def model(shape, classes):\n"
            "    return [('conv1', Conv(0, 3))]\n",
            "mine.py, line 3: Conv: o is 0",
        ),
        (
            "from mpicnn.layers import Flatten, Linear\n"
            "def model(shape, classes):\n"
            "    return [('flatten', Flatten()), ('fc1', Linear(9))]\n",
            "network mine: ends in 9 numbers per example, expected 10",
        ),
        ("raise ValueError('two\\nlines')\n", "line 1: ValueError: two lines"),
    ],
)
def test_errors_in_python_files_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "mine.py", text)
    with expect_error(message) as caught:
        load(path, GRAY, 10)
    assert "\n" not in str(caught.value)


TOML = """
[[layer]]
type = "conv"
o = 6
kernel = [3, 2]
padding = 1

[[layer]]
type = "relu"

[[layer]]
type = "maxpool"
kernel = 2

[[layer]]
name = "flat"
type = "flatten"

[[layer]]
type = "linear"
o = 9

[[layer]]
type = "linear"
o = "classes"
"""


def test_toml_file(tmp_path: Path) -> None:
    model = load(write(tmp_path / "mine.toml", TOML), (3, 9, 7), 5)
    assert model.layers == (
        ("conv1", Conv(6, (3, 2), padding=1)),
        ("relu1", ReLU()),
        ("maxpool1", MaxPool(2)),
        ("flat", Flatten()),
        ("linear1", Linear(9)),
        ("linear2", Linear(5)),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'type = "relu"',
            'type = "rely"',
            r"layer 2 .*'rely', expected one of add, .*relu",
        ),
        ('type = "relu"', "", r"layer 2 .*type None, expected one of"),
        ("padding = 1", "pading = 1", r"layer 1 \(conv1\): unknown setting 'pading', .* padding"),
        ("kernel = 2", "", r"layer 3 \(maxpool1\): maxpool needs the setting 'kernel'"),
        ("kernel = 2", "kernel = 'two'", r"layer 3 \(maxpool1\): MaxPool: kernel"),
        ("o = 9", "o = 'nine'", r"layer 5 \(linear1\): Linear: o"),
        ('name = "flat"', "name = 3", "layer 4 .*name 3, expected"),
        ('name = "flat"', 'name = "conv1"', "2 layers named 'conv1'"),
        ("kernel = [3, 2]", "kernel = [3, 20]", "network mine, layer conv1: .*kernel"),
        ("[[layer]]", "[[layers]]", "unknown key 'layers', expected"),
        ("o = 9", "o == 9", "not TOML: .*line"),
        (TOML, "", "no .*tables"),
        (TOML, "layer = 3", "no .*tables"),
    ],
)
def test_errors_in_toml_files_name_file_and_entry(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in TOML
    path = write(tmp_path / "mine.toml", TOML.replace(old, new))
    with expect_error(message) as caught:
        load(path, (3, 9, 7), 5)
    assert "mine" in str(caught.value)


def narrower(model: Model, divisor: int) -> Model:
    """Return the network with that many times fewer channels everywhere but in the classes."""
    description = model.describe()
    for entry in description[:-1]:
        if "o" in entry:
            entry["o"] //= divisor
    return Model.from_description(model.name, model.input_shape, description)


def loss_and_grads(
    model: Model, params: dict[str, Array], x: Array, labels: Array
) -> tuple[float, dict[str, Array], Array]:
    """Return the mean loss, its gradients by every parameter, and by x, with dropout off."""
    n = len(x)
    tape, grads = [], {}
    for index, (name, layer) in enumerate(model.layers):
        shape = model.shapes[index + 1]
        run = Context(False, 0, 0, index, n, np.arange(n), (0, shape[0]))
        p = {key: params[f"{name}.{key}"] for key in layer.params(model.fed[index])}
        y, made = layer.forward(ops, x, p, run)
        tape.append((name, layer, layer.tape(x, y, made), p, run))
        x = y
    loss = SoftmaxCrossEntropy()
    (total, *_), saved = loss.forward(ops, x, labels)
    dy = loss.backward(ops, saved, n)
    for name, layer, kept, p, run in reversed(tape):
        dx, local = layer.backward(ops, dy, kept, p, run)
        assert dx is not None
        dy = dx
        grads.update({f"{name}.{key}": g for key, g in local.items()})
    return total / n, grads, dy


def torch_layer(torch: Any, entry: dict[str, Any], shape: Shape) -> Any:
    """Build PyTorch's layer from an entry of a description alone."""
    nn = torch.nn
    match entry:
        case {"type": "conv"}:
            keys = ("stride", "padding", "dilation", "groups", "bias")
            options = {key: entry[key] for key in keys}
            return nn.Conv2d(shape[0], entry["o"], entry["kernel"], **options)
        case {"type": "linear"}:
            return nn.Linear(shape[0], entry["o"], bias=entry["bias"])
        case {"type": "maxpool", "kernel": k, "stride": s, "padding": p, "ceil_mode": ceil}:
            return nn.MaxPool2d(k, s, p, ceil_mode=ceil)
        case {"type": "avgpool", "kernel": k, "stride": s, "padding": p, "ceil_mode": ceil}:
            return nn.AvgPool2d(k, s, p, ceil, entry["count_include_pad"])
        case {"type": "lrn"}:
            return nn.LocalResponseNorm(*(entry[key] for key in ("size", "alpha", "beta", "k")))
        case {"type": "relu"}:
            return nn.ReLU()
        case {"type": "dropout"}:
            return nn.Dropout(entry["rate"])
        case {"type": "flatten"}:
            return nn.Flatten()
    raise AssertionError(entry)


@pytest.mark.parametrize(
    ("name", "input_shape", "divisor"),
    [
        ("default", GRAY, 1),
        ("cuda-convnet", CIFAR, 1),
        ("alexnet-cifar", (3, 15, 17), 2),
        ("alexnet", (3, 67, 71), 16),
        ("alexnet-owt", (3, 63, 63), 16),
        ("vgg11", (3, 33, 35), 16),
    ],
)
def test_loss_and_gradients_are_those_of_pytorch(
    name: str, input_shape: Shape, divisor: int
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    model = narrower(load(name, input_shape, 7), divisor)
    modules = [
        torch_layer(torch, entry, shape)
        for entry, shape in zip(model.describe(), model.fed, strict=True)
    ]
    theirs = torch.nn.Sequential(*modules).double().eval()
    params = {}
    for (layer_name, _), module in zip(model.layers, modules, strict=True):
        for key, tensor in zip(("w", "b"), module.parameters(), strict=False):
            spec = model.param_specs()[f"{layer_name}.{key}"]
            # Weights of the size of He's, so that no signal dies out; biases that are not zero.
            deviation = 0.1 if spec.bias else (2 / spec.fan_in) ** 0.5
            draws = np.random.default_rng(len(params)).standard_normal(spec.shape)
            params[f"{layer_name}.{key}"] = deviation * draws
            tensor.data = torch.tensor(params[f"{layer_name}.{key}"])
    assert params.keys() == model.param_specs().keys()
    x = np.random.default_rng(99).standard_normal((3, *input_shape))
    labels = np.array([4, 0, 6])

    loss, grads, dx = loss_and_grads(model, params, x, labels)
    image = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs(image), torch.tensor(labels))
    expected.backward()

    # Sums of up to some thousand products in float64 in another order, layer upon layer.
    assert loss == pytest.approx(expected.item(), rel=1e-11)
    expected_grads = {
        f"{layer_name}.{key}": tensor.grad.numpy()
        for (layer_name, _), module in zip(model.layers, modules, strict=True)
        for key, tensor in zip(("w", "b"), module.parameters(), strict=False)
    }
    for got, want in [(dx, image.grad.numpy())] + [
        (grads[key], expected_grads[key]) for key in params
    ]:
        assert got.shape == want.shape
        assert np.abs(want).max() > 1e-6  # a gradient that tells something
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11 * np.abs(want).max())


def test_lrn_of_2012_multiplies_the_sum_by_the_published_alpha() -> None:
    norm = dict(load("alexnet", CROP, 10).layers)["norm1"]
    x = np.zeros((1, 5, 1, 1))
    x[0, :, 0, 0] = 100.0
    y = norm.forward(ops, x, {}, Context(False, 0, 0, 0, 1, np.arange(1), (0, 5)))[0]
    assert y[0, 2, 0, 0] == pytest.approx(100 / (2 + 1e-4 * 5 * 100**2) ** 0.75, rel=1e-12)
    assert isinstance(norm, LRN)


def test_default_learns_in_a_few_steps() -> None:
    """Halve the loss on four kinds of noisy stripes, from the weights that a run starts with."""
    model = load("default", GRAY, 4)
    params = {
        name: initial_rows(param, 1, name, (0, param.shape[0]), np.float32)
        for name, param in model.param_specs().items()
    }
    draws = np.random.default_rng(5)
    labels = draws.integers(4, size=32)
    rows = np.arange(28)
    waves = np.sin(rows * (1 + np.arange(4))[:, None] / 2)
    x = (waves[labels][:, None, :, None] + draws.normal(size=(32, 1, 28, 28))).astype(np.float32)
    first, *_ = loss_and_grads(model, params, x, labels)
    for _ in range(8):
        _, grads, _ = loss_and_grads(model, params, x, labels)
        for name, g in grads.items():
            params[name] -= np.float32(0.05) * g
    last, *_ = loss_and_grads(model, params, x, labels)
    assert last < 0.5 * first
