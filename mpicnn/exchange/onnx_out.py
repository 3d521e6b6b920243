"""Write a network as an ONNX graph, as it computes in evaluation.

ONNX: https://onnx.ai/onnx/operators/. Nodes have the names of layers and initialisers those of
parameters ("conv1.w"); where a layer takes several nodes, the last one has its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from mpicnn import __version__
from mpicnn import layers as kinds
from mpicnn.errors import UserError
from mpicnn.exchange import groups
from mpicnn.exchange.network import Network, Pixels, metadata
from mpicnn.exchange.packages import needed
from mpicnn.layers import Layer
from mpicnn.layers.pool import AvgPool, MaxPool
from mpicnn.models.model import IMAGES
from mpicnn.ops.window import Window, pool_size

OPSET, IR_VERSION = 21, 10
"""The first with group normalisation per channel (ONNX 1.16, 2024), and the format of its time."""

IMAGE_INPUT, OUTPUT, BATCH = "images", "logits", "batch"


@dataclass
class Graph:
    """Collect the nodes and the constants of a graph; `arrays` are the network's, by full name."""

    onnx: Any
    arrays: Mapping[str, Any]
    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)

    def node(self, name: str, op: str, inputs: Sequence[str], output: str, **settings: Any) -> str:
        """Add a node and return the name of what it gives."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], name, **settings))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a constant of float32 and return its name."""
        array = np.asarray(value, np.float32)
        self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def weights(self, name: str, *keys: str) -> list[str]:
        """Add those of a layer's arrays that it has, and return their names."""
        full = [f"{name}.{key}" for key in keys if f"{name}.{key}" in self.arrays]
        return [self.constant(each, self.arrays[each]) for each in full]


@dataclass(frozen=True)
class Place:
    """A layer's name, what it reads by name, the name of what it gives, and what shape it is fed.

    The shape is that of one example.
    """

    name: str
    reads: Sequence[str]
    gives: str
    shape: Any

    def part(self, what: str) -> str:
        """Return the name of something inside a layer of several nodes; no other has it."""
        return f"{self.name}.{what}"


Writer = Callable[[Graph, Place, Any], Any]


def to_onnx(network: Network, normalise: bool = False) -> Any:
    """Return a network as an ONNX model of any batch size, checked by `onnx.checker`.

    It takes `images` (batch, c, h, w) as float32, normalised, or with `normalise` as uint8 with
    pixels from 0 to 255, and gives `logits` (batch, classes), before softmax, as float32.
    Raises UserError where onnx is missing, and for layers that ONNX cannot express.
    """
    onnx = needed("onnx", "ONNX files")
    model = network.model
    obstacles = [
        _obstacle(layer, fed) for (_, layer), fed in zip(model.layers, model.fed, strict=True)
    ]
    _refuse([(name, why) for (name, _), why in zip(model.layers, obstacles, strict=True) if why])
    graph = Graph(onnx, network.arrays)
    values = {IMAGES: IMAGE_INPUT}
    if normalise:
        assert network.pixels is not None
        values[IMAGES] = _normalised(graph, network.pixels)
    last = model.layers[-1][0]
    for (name, layer, reads), fed in zip(model.nodes, model.fed, strict=True):
        values[name] = OUTPUT if name == last else f"{name}.out"
        place = Place(name, [values[each] for each in reads], values[name], fed)
        WRITERS[type(layer)](graph, place, layer)
    number = onnx.TensorProto.UINT8 if normalise else onnx.TensorProto.FLOAT
    describe = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            model.name,
            [describe(IMAGE_INPUT, number, [BATCH, *model.input_shape])],
            [describe(OUTPUT, onnx.TensorProto.FLOAT, [BATCH, model.classes])],
            list(graph.constants.values()),
        ),
        producer_name="mpicnn",
        producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(made, metadata(network) | groups.metadata(model))
    onnx.checker.check_model(made, full_check=True)
    return made


def _refuse(found: Sequence[tuple[str, str]]) -> None:
    if found:
        listed = "; ".join(f"layer {name}: {why}" for name, why in found)
        raise UserError(f"ONNX cannot express {listed}; export FILE.safetensors for the weights")


def _obstacle(layer: Layer, shape: Any) -> str:
    """Return why ONNX cannot express a layer that is fed this shape, "" where it can."""
    if type(layer) not in WRITERS:
        return f"{type(layer).__name__}, a class of your own"
    if isinstance(layer, kinds.LRN) and layer.size % 2 == 0:
        return f"LRN of an even size, {layer.size}, whose window ONNX puts one channel further on"
    if isinstance(layer, MaxPool | AvgPool):
        try:
            _pooled(layer, shape[1:])
        except UserError as error:
            return str(error)
    return ""


def _normalised(graph: Graph, pixels: Pixels) -> str:
    """Add (image - mean) / std for images of uint8, and return its name."""
    numbers = graph.onnx.TensorProto.FLOAT
    floats = graph.node("cast", "Cast", [IMAGE_INPUT], "images.float", to=numbers)
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (pixels.mean, pixels.std))
    centred = graph.node(
        "centre", "Sub", [floats, graph.constant("images.mean", mean)], "images.centred"
    )
    divisor = graph.constant("images.std", std)
    return graph.node("scale", "Div", [centred, divisor], "images.normalised")


def _moves(layer: Any, kernel: Sequence[int], dilation: Sequence[int]) -> dict[str, Any]:
    """Return how a kernel moves, as attributes; pads are (top, left, bottom, right)."""
    padding = Window.of(layer.stride, layer.padding).padding
    return {
        "kernel_shape": list(kernel),
        "strides": list(layer.stride),
        "pads": [front for front, _ in padding] + [behind for _, behind in padding],
        "dilations": list(dilation),
    }


def _pooled(layer: Any, space: Sequence[int]) -> dict[str, Any]:
    """Return how a pooling moves over images of (h, w), as attributes.

    With ceil_mode ONNX has a last window that starts behind the image too, which PyTorch and we
    leave out (before opset 22). Where an axis would have one, ceil_mode is off, and what windows
    of the other axis hang over is padding. Raises UserError where that is not the same mean.
    """
    dilation: tuple[int, ...] = layer.dilation if isinstance(layer, MaxPool) else (1, 1)
    found = _moves(layer, layer.kernel, dilation)
    if not layer.ceil_mode:
        return found
    window = Window.of(layer.stride, layer.padding, dilation)
    axes = zip(space, window.reach(layer.kernel), layer.stride, window.padding, strict=True)
    exact, over = [], []
    for size, reach, stride, sides in axes:
        outputs = pool_size(size, reach, stride, sides, True)
        room = size + sum(sides) - reach
        exact.append(outputs == -(-room // stride) + 1)
        over.append(max(0, (outputs - 1) * stride - room))
    if all(exact):
        return found | {"ceil_mode": 1}
    if any(over) and isinstance(layer, AvgPool) and layer.count_include_pad:
        raise UserError(
            "AvgPool with ceil_mode, count_include_pad and a window that would start behind the "
            "image on one axis and not on the other"
        )
    ends = [pad + more for pad, more in zip(found["pads"][2:], over, strict=True)]
    return found | {"pads": found["pads"][:2] + ends}


def _conv(graph: Graph, place: Place, layer: kinds.Conv) -> None:
    inputs = [*place.reads, *graph.weights(place.name, "w", "b")]
    settings = _moves(layer, layer.kernel, layer.dilation) | {"group": layer.groups}
    graph.node(place.name, "Conv", inputs, place.gives, **settings)


def _linear(graph: Graph, place: Place, layer: kinds.Linear) -> None:
    name = f"{place.name}.w"
    w = graph.constant(name, groups.whole(graph.arrays[name], layer.groups))
    inputs = [*place.reads, w, *graph.weights(place.name, "b")]
    graph.node(place.name, "Gemm", inputs, place.gives, transB=1)


def _max_pool(graph: Graph, place: Place, layer: MaxPool) -> None:
    graph.node(place.name, "MaxPool", place.reads, place.gives, **_pooled(layer, place.shape[1:]))


def _avg_pool(graph: Graph, place: Place, layer: AvgPool) -> None:
    settings = _pooled(layer, place.shape[1:]) | {"count_include_pad": int(layer.count_include_pad)}
    graph.node(place.name, "AveragePool", place.reads, place.gives, **settings)


def _add(graph: Graph, place: Place, layer: kinds.Add) -> None:
    op = "Add" if len(place.reads) == 2 else "Sum"
    graph.node(place.name, op, place.reads, place.gives)


def _batch_norm(graph: Graph, place: Place, layer: kinds.BatchNorm) -> None:
    inputs = [*place.reads, *graph.weights(place.name, "gamma", "beta", "mean", "var")]
    settings = {"epsilon": layer.eps, "momentum": 1 - layer.momentum}
    graph.node(place.name, "BatchNormalization", inputs, place.gives, **settings)


def _group_norm(graph: Graph, place: Place, layer: kinds.GroupNorm) -> None:
    inputs = [*place.reads, *graph.weights(place.name, "gamma", "beta")]
    settings = {"epsilon": layer.eps, "num_groups": layer.groups}
    graph.node(place.name, "GroupNormalization", inputs, place.gives, **settings)


def _lrn(graph: Graph, place: Place, layer: kinds.LRN) -> None:
    settings = {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": layer.k}
    graph.node(place.name, "LRN", place.reads, place.gives, **settings)


def _relu6(graph: Graph, place: Place, layer: kinds.ReLU6) -> None:
    bounds = [graph.constant(place.part("least"), 0), graph.constant(place.part("most"), 6)]
    graph.node(place.name, "Clip", [*place.reads, *bounds], place.gives)


def _silu(graph: Graph, place: Place, layer: kinds.SiLU) -> None:
    (x,) = place.reads
    gate = graph.node(place.part("gate"), "Sigmoid", [x], place.part("sigmoid"))
    graph.node(place.name, "Mul", [x, gate], place.gives)


def _leaky_relu(graph: Graph, place: Place, layer: kinds.LeakyReLU) -> None:
    graph.node(place.name, "LeakyRelu", place.reads, place.gives, alpha=layer.slope)


def _dropout(graph: Graph, place: Place, layer: kinds.Dropout) -> None:
    rate = graph.constant(place.part("rate"), layer.rate)
    graph.node(place.name, "Dropout", [*place.reads, rate], place.gives)


def _plain(op: str, **settings: Any) -> Writer:
    """Return the writer of a layer that is one operator, whatever its own settings."""

    def write(graph: Graph, place: Place, layer: Layer) -> None:
        graph.node(place.name, op, place.reads, place.gives, **settings)

    return write


WRITERS: Mapping[type[Layer], Writer] = MappingProxyType(
    {
        kinds.Conv: _conv,
        kinds.Linear: _linear,
        kinds.MaxPool: _max_pool,
        kinds.AvgPool: _avg_pool,
        kinds.GlobalAvgPool: _plain("GlobalAveragePool"),
        kinds.Add: _add,
        kinds.Multiply: _plain("Mul"),
        kinds.Concat: _plain("Concat", axis=1),
        kinds.LRN: _lrn,
        kinds.BatchNorm: _batch_norm,
        kinds.GroupNorm: _group_norm,
        kinds.ReLU: _plain("Relu"),
        kinds.ReLU6: _relu6,
        kinds.LeakyReLU: _leaky_relu,
        kinds.SiLU: _silu,
        kinds.HardSwish: _plain("HardSwish"),
        kinds.Sigmoid: _plain("Sigmoid"),
        kinds.Tanh: _plain("Tanh"),
        kinds.GELU: _plain("Gelu"),
        kinds.Dropout: _dropout,
        kinds.Flatten: _plain("Flatten", axis=1),
    }
)
"""What writes each kind of layer."""
