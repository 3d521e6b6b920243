"""Graphs that other exporters write: constants, padding and reshapes, compared with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_cases import answers, error, run

from mpicnn.errors import UserError
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.pixels import IMAGENET, Pixels, assumed
from mpicnn.layers import GroupNorm

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'mpicnn[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

SHAPE = (3, 9, 8)


class Graph:
    """A graph that is made node by node, of the images `x`."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...] = SHAPE) -> None:
        self.rng, self.shape = rng, shape
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        array = np.asarray(array)
        array = array if array.dtype == np.int64 else array.astype(np.float32)
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, *inputs: str, **settings: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], f"at_{name}", **settings))
        return name

    def conv(self, x: str, o: int, c: int, **settings: Any) -> str:
        w = self.rng.standard_normal((o, c, 3, 3)) / 5
        return self.node("Conv", x, self.constant(w), **settings)

    def write(self, path: Path, end: str, opset: int = 17, batch: Any = "batch") -> Path:
        kind, info = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            self.nodes, "graph", [info("x", kind, [batch, *self.shape])],
            [info(end, kind, ["n", "classes"])], self.constants,
        )  # fmt: skip
        opsets = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path

    def rows(self, x: str) -> str:
        return self.node("Flatten", self.node("GlobalAveragePool", x), axis=1)


def compare(path: Path, rng: np.random.Generator, shape: tuple[int, ...] = SHAPE) -> Any:
    """Check that a file's network answers as onnxruntime does; return the network."""
    network = from_onnx(path, "graph")
    x = rng.standard_normal((2, *shape)).astype(np.float32)
    assert error(answers(network.model, network.arrays, x), run(path, x)) < 1e-5
    return network


def some_constant(graph: Graph, c: int, axes: int) -> str:
    """Return one number, or one for each channel, in one of the shapes that this may have."""
    tail = (1,) * (axes - 2)
    shape = [(), (1,), (c, *tail), (1, c, *tail)][graph.rng.integers(4)]
    sign = -1 if graph.rng.random() < 0.3 else 1
    return graph.constant(sign * (0.5 + graph.rng.random(shape)))


@pytest.mark.parametrize("seed", range(30))
def test_constants_become_part_of_layers(seed: int, tmp_path: Path) -> None:
    """Arithmetic with constants behind layers with weights, in any order, on any side."""
    rng = np.random.default_rng(seed)
    graph = Graph(rng)

    def arithmetic(x: str, c: int, axes: int) -> str:
        for _ in range(int(rng.integers(0, 4))):
            op = str(rng.choice(["Add", "Mul", "Sub", "Div"]))
            pair = [x, some_constant(graph, c, axes)]
            if op in ("Add", "Mul") and rng.random() < 0.5:
                pair.reverse()
            x = graph.node(op, *pair)
            if rng.random() < 0.2:
                x = graph.node("Identity", x)
        return x

    x = arithmetic(graph.conv("x", 4, 3), 4, 4)
    x = graph.node("Relu", x)
    factors = [graph.constant(rng.random(4) + 0.5) for _ in range(4)]
    x = arithmetic(graph.node("BatchNormalization", x, *factors), 4, 4)
    x = graph.node("Add", graph.node("Relu", x), graph.node("Tanh", x))
    x = graph.rows(x)
    w = graph.constant(rng.standard_normal((4, 5)))
    x = graph.node("Relu", arithmetic(graph.node("MatMul", x, w), 5, 2))
    w = graph.constant(rng.standard_normal((5, 6)))
    end = arithmetic(graph.node("Gemm", x, w, alpha=0.7, beta=0.3), 6, 2)
    compare(graph.write(tmp_path / "net.onnx", end), rng)


def test_a_factor_is_not_taken_where_somebody_reads_what_is_before_it(tmp_path: Path) -> None:
    """Also under another name of the same values."""
    for other in ("Identity", "MaxPool"):
        graph = Graph(np.random.default_rng(1))
        x = graph.node("Mul", graph.conv("x", 4, 3), graph.constant(2.0))
        settings = {"kernel_shape": [1, 1]} if other == "MaxPool" else {}
        same = graph.node(other, x, **settings)
        late = graph.node("Tanh", graph.node("Mul", same, graph.constant(3.0)))
        path = graph.write(tmp_path / "net.onnx", graph.rows(graph.node("Add", x, late)))
        with pytest.raises(UserError, match="operator Mul, node at_n3: a factor or shift that no"):
            from_onnx(path, "net")


def test_what_graphs_begin_with_is_how_images_are_normalised(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    graph = Graph(rng)
    mean, std = np.array([120.0, 110, 100]), np.array([60.0, 50, 55])
    x = graph.node("Sub", "x", graph.constant(mean.reshape(1, 3, 1, 1)))
    x = graph.conv(graph.node("Div", x, graph.constant(std.reshape(3, 1, 1))), 4, 3)
    path = graph.write(tmp_path / "net.onnx", graph.rows(x))
    network = from_onnx(path, "net")
    assert network.pixels is None
    assert network.inside == Pixels(tuple(mean), tuple(std))
    assert assumed(3, network.inside)[0] == Pixels((0.0,) * 3, (1.0,) * 3)
    pixels = rng.integers(0, 256, (2, *SHAPE)).astype(np.float32)
    normalised = (pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
    assert error(answers(network.model, network.arrays, normalised), run(path, pixels)) < 1e-5


def test_how_images_are_normalised_for_a_graph_that_does_a_part_of_it() -> None:
    ones, rng = np.asarray(IMAGENET.mean) / 255, np.random.default_rng(1)
    of_one = Pixels(tuple(ones), tuple(np.asarray(IMAGENET.std) / 255))
    twice = Pixels((0.07, 0.2, 0.42), (2.2, 2.2, 2.2))  # torchvision's GoogLeNet
    bases = [assumed(3, inside)[0] for inside in (None, IMAGENET, of_one, twice)]
    expected = IMAGENET, Pixels((0.0,) * 3, (1.0,) * 3), Pixels((0.0,) * 3, (255.0,) * 3), IMAGENET
    assert tuple(bases) == expected
    assert assumed(1, None)[0] == Pixels((0.0,), (255.0,))
    assert bases[2].then(of_one).near(IMAGENET)
    pixels, both = rng.random((4, 3)) * 255, bases[3].then(twice)
    once = (pixels - IMAGENET.mean) / IMAGENET.std
    again = (once - twice.mean) / twice.std
    np.testing.assert_allclose((pixels - both.mean) / both.std, again)


@pytest.mark.parametrize("seed", range(24))
def test_padding_in_every_form(seed: int, tmp_path: Path) -> None:
    """Zeros of a Pad, pads of each side, and those that `auto_pad` chooses."""
    rng = np.random.default_rng(seed)
    graph, c, x = Graph(rng, (3, 33, 30)), 3, "x"
    for _ in range(3):
        auto = str(rng.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
        kind = str(rng.choice(["Conv", "MaxPool", "AveragePool"]))
        settings: dict[str, Any] = {"strides": [int(s) for s in rng.integers(1, 3, 2)]}
        settings["kernel_shape"] = [3, 3]
        settings |= {"auto_pad": auto} if auto != "NOTSET" else {}
        if auto == "NOTSET" and rng.random() < 0.7:
            settings["pads"] = [int(p) for p in rng.integers(0, 2, 4)]
        if kind != "MaxPool" and auto == "NOTSET" and rng.random() < 0.5:
            top, left, bottom, right = (int(p) for p in rng.integers(0, 2, 4))
            pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
            x = graph.node("Pad", x, graph.constant(pads))
            settings |= {"count_include_pad": 1} if kind == "AveragePool" else {}
        elif kind == "AveragePool":
            settings["count_include_pad"] = int(rng.integers(2))
        if kind == "Conv":
            x, c = graph.conv(x, 4, c, **settings), 4
        else:
            x = graph.node(kind, x, **settings)
    try:
        compare(graph.write(tmp_path / "net.onnx", graph.rows(x), 19), rng, graph.shape)
    except UserError as refusal:
        assert "more than half of the kernel" in str(refusal)
        assert any(n.op_type == "AveragePool" for n in graph.nodes)


@pytest.mark.parametrize("batch", ["batch", 2])
@pytest.mark.parametrize("form", ["-1", "0", "shape", "fixed", "squeeze", "mean"])
def test_rows_in_every_form(form: str, batch: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    graph = Graph(rng)
    x = graph.conv("x", 4, 3)
    if form == "squeeze":
        axes = graph.constant(np.array([2, -1], np.int64))
        x = graph.node("Squeeze", graph.node("GlobalAveragePool", x), axes)
    elif form == "mean":
        x = graph.node("ReduceMean", x, axes=[-1, -2], keepdims=0)
    elif form == "shape":  # x.view(x.size(0), -1)
        zero = graph.constant(np.array(0, np.int64))
        first = graph.node("Gather", graph.node("Shape", x), zero)
        first = graph.node("Unsqueeze", first, graph.constant(np.array([0], np.int64)))
        rest = graph.constant(np.array([-1], np.int64))
        x = graph.node("Reshape", x, graph.node("Concat", first, rest, axis=0))
    else:
        rows = {"-1": [-1, 168], "0": [0, -1], "fixed": [2, 168] if batch == 2 else [-1, 168]}
        x = graph.node("Reshape", x, graph.constant(np.array(rows[form], np.int64)))
    w = graph.constant(rng.standard_normal((4 if form in ("squeeze", "mean") else 168, 5)))
    end = graph.node("Softmax", graph.node("Gemm", x, w), axis=-1)
    network = from_onnx(graph.write(tmp_path / "net.onnx", end, batch=batch), "net")
    assert network.notes == ("Softmax at the end is left out: networks give logits",)
    images = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    odds = np.exp(answers(network.model, network.arrays, images))
    expected = run(tmp_path / "net.onnx", images)
    assert error(odds / odds.sum(axis=1, keepdims=True), expected) < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_normalisation_between_reshapes(groups: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(groups)
    graph = Graph(rng)
    x = graph.conv("x", 4, 3)
    shape = graph.node("Shape", x)
    parts = graph.node("Reshape", x, graph.constant(np.array([0, groups, -1], np.int64)))
    factors = [graph.constant(0.5 + rng.random(groups)) for _ in range(2)]
    x = graph.node("InstanceNormalization", parts, *factors, epsilon=1e-3)
    x = graph.node("Reshape", x, shape)
    x = graph.node("Mul", x, graph.constant(rng.random((4, 1, 1))))
    x = graph.node("Relu", graph.node("Add", x, graph.constant(rng.random((4, 1, 1)))))
    network = compare(graph.write(tmp_path / "net.onnx", graph.rows(x)), rng)
    assert dict(network.model.layers).get("groupnorm1") == GroupNorm(groups, 1e-3)
