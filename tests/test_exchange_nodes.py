"""ONNX's own cases of single operators: imported, they compute what it says, or are refused."""

from __future__ import annotations

import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_cases import answers, error, run

from mpicnn.errors import UserError
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.table import OPERATORS

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'mpicnn[onnx]'")

FILES = {
    "BatchNormalization": "batch_normalization", "InstanceNormalization": "instance_normalization",
    "ReduceMean": "reducemean",
}  # fmt: skip
"""Modules of cases that are not called as their operator."""

SOME = {
    "Conv": 6, "Gemm": 8, "BatchNormalization": 2, "GroupNormalization": 2, "MaxPool": 10,
    "InstanceNormalization": 2, "AveragePool": 10, "LRN": 2, "GlobalAveragePool": 2,
    "GlobalMaxPool": 2, "Relu": 1, "MatMul": 1, "Sigmoid": 1, "Tanh": 1, "LeakyRelu": 2, "Gelu": 1,
    "HardSwish": 1, "Flatten": 3, "Dropout": 3, "Identity": 1,
}  # fmt: skip
"""Of how many cases each of these operators has at least, that are images and are not refused."""

VALUE_BY_VALUE = (
    "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "Gelu", "HardSwish", "Identity", "Dropout",
)  # fmt: skip


def cases() -> list[Any]:
    """Return ONNX's cases for the operators that are read, of other versions of them too."""
    node = import_module("onnx.backend.test.case.node")
    for op in OPERATORS:
        with warnings.catch_warnings():  # some cases overflow as they are made
            warnings.simplefilter("ignore")
            import_module(f"{node.__name__}.{FILES.get(op, op.lower())}")
    return list(node._NodeTestCases)


def with_constants(case: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a case as a model of its first input, with what it is given and is to give, flat.

    Its other inputs become constants, and its first output alone is left, in rows.
    """
    ((inputs, outputs),) = case.data_sets
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    for info, array in zip(graph.input[1:], inputs[1:], strict=True):
        if isinstance(array, np.ndarray):
            graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    if graph.initializer:
        del graph.input[1:]
    x = as_images(graph, inputs[0])
    name, expected = graph.output[0].name, np.asarray(outputs[0])
    graph.node.append(onnx.helper.make_node("Flatten", [name], ["rows"], "rows", axis=1))
    del graph.output[:]
    shape = [expected.shape[0], expected.size // max(1, expected.shape[0])]
    graph.output.append(onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, shape))
    return model, x, expected.reshape(shape)


@pytest.mark.parametrize("name", ["squeezenet", "inception_v1", "densenet121"])
def test_networks_of_another_exporter(name: str, tmp_path: Path) -> None:
    """Of Caffe2, opset 9, in the package without weights: here they have random ones."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    rng, package = np.random.default_rng(6), Path(onnx.__file__).parent
    model = onnx.load(package / "backend" / "test" / "data" / "light" / f"light_{name}.onnx")
    graph = model.graph
    shapes = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    for node in (node for node in graph.node if node.op_type == "ConstantOfShape"):
        shape = tuple(shapes[node.input[0]])
        values = 0.5 + rng.random(shape)
        if len(shape) > 1:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        array = onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0])
        graph.initializer.append(array)
    del graph.node[:]
    graph.node.extend(kept)
    model.ir_version = 8  # from 4 on initialisers are no inputs
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    network = from_onnx(path, name)
    x = rng.standard_normal((1, *network.model.input_shape)).astype(np.float32)
    found, expected = answers(network.model, network.arrays, x), run(path, x).reshape(1, -1)
    if network.notes == ("Softmax at the end is left out: networks give logits",):
        found = np.exp(found - found.max()) / np.exp(found - found.max()).sum()
    assert expected.std() > 1e-4 * expected.max(), "all classes alike, or one alone"
    assert expected.max() < 0.99 or not network.notes, "nothing but one class would be compared"
    assert error(found, expected) < 1e-5


def as_images(graph: Any, x: np.ndarray) -> np.ndarray:
    """Return the input of a case as images, (n, c, h, w), and have its graph take them.

    Rows become images of one pixel, with Flatten in front of the node. Of an operator that acts on
    every value by itself, (n, c, h) become (n, c, h, 1).
    """
    if x.ndim == 2:
        x = x[:, :, None, None]
        name = graph.input[0].name
        for each in graph.node:
            each.input[:] = ["row" if read == name else read for read in each.input]
        graph.node.insert(0, onnx.helper.make_node("Flatten", [name], ["row"], "row", axis=1))
    elif x.ndim == 3 and graph.node[0].op_type in VALUE_BY_VALUE:
        x = x[..., None]
    if x.ndim == 4:
        kind = graph.input[0].type.tensor_type.elem_type
        info = onnx.helper.make_tensor_value_info(graph.input[0].name, kind, x.shape)
        graph.input[0].CopyFrom(info)
    return x


def test_onnx_cases_of_single_operators(tmp_path: Path) -> None:
    computed: Counter[str] = Counter()
    path = tmp_path / "case.onnx"
    for case in cases():
        x, op = case.data_sets[0][0][0], case.model.graph.node[-1].op_type
        first = case.data_sets[0][1][0]
        if not (isinstance(x, np.ndarray) and isinstance(first, np.ndarray) and first.ndim > 1):
            continue
        model, x, expected = with_constants(case)
        path.write_bytes(model.SerializeToString())
        try:
            network = from_onnx(path, "case")
        except UserError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            continue
        found = answers(network.model, network.arrays, x)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6, err_msg=case.name)
        computed[op if "expanded" not in case.name else "expanded"] += 1
    lacking = {op: computed[op] for op, least in SOME.items() if computed[op] < least}
    assert not lacking
