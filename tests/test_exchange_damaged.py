"""Graphs with something changed at random: read, or refused in one line."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_cases import draw

from mpicnn.errors import UserError
from mpicnn.exchange.onnx_in import from_onnx
from mpicnn.exchange.onnx_out import to_onnx
from mpicnn.exchange.table import OPERATORS

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'mpicnn[onnx]'")


def mutated(model: Any, rng: np.random.Generator) -> None:
    """Change one thing in a graph: a setting, a name of what is read, an operator, a constant."""
    graph = model.graph
    node = graph.node[rng.integers(len(graph.node))]
    what = rng.integers(5)
    if what == 0 and node.attribute:
        attribute = node.attribute[rng.integers(len(node.attribute))]
        if attribute.ints:
            attribute.ints[rng.integers(len(attribute.ints))] = int(rng.integers(-2, 9))
            if rng.random() < 0.3:
                attribute.ints.pop()
        attribute.i = int(rng.integers(-2, 5))
        attribute.f = float(rng.normal())
    elif what == 1 and node.input:
        names = [*(c.name for c in graph.initializer), *(n.output[0] for n in graph.node), "images"]
        node.input[rng.integers(len(node.input))] = str(rng.choice(names))
    elif what == 2:
        node.op_type = str(rng.choice([*OPERATORS, "Transpose", "Shape", "Slice"]))
    elif what == 3 and graph.initializer:
        constant = graph.initializer[rng.integers(len(graph.initializer))]
        shape = tuple(int(n) for n in rng.integers(0, 4, rng.integers(0, 5)))
        constant.CopyFrom(onnx.numpy_helper.from_array(np.ones(shape, np.float32), constant.name))
    elif what == 4:
        dims = graph.input[0].type.tensor_type.shape.dim
        dims[rng.integers(4)].dim_value = int(rng.integers(0, 12))


def test_damaged_graphs_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    refused, read, path = Counter[str](), 0, tmp_path / "net.onnx"
    for seed in range(400):
        rng = np.random.default_rng(seed)
        model = to_onnx(draw(seed % 60))
        for _ in range(int(rng.integers(1, 4))):
            mutated(model, rng)
        path.write_bytes(model.SerializeToString())
        try:
            from_onnx(path, "net")
            read += 1
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused["operator" if "operator" in str(error) else "file"] += 1
    assert min(read, *refused.values()) > 20, (read, refused)
