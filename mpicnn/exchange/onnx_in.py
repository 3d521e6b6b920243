"""Read an ONNX graph as a network of our layers.

The nodes are read in their order. What depends on constants alone is computed at once; what
depends on the images becomes a layer, or waits for the nodes behind it (`mpicnn.exchange.values`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpicnn import layers as kinds
from mpicnn.errors import UserError
from mpicnn.exchange.groups import regrouped
from mpicnn.exchange.network import Network, check_arrays, read_metadata
from mpicnn.exchange.packages import needed
from mpicnn.exchange.table import OPERATORS
from mpicnn.exchange.values import Affine, Builder, Lost, Node, Out, Value
from mpicnn.models.model import IMAGES, Model
from mpicnn.ops.interface import Array

OLDEST_OPSET = 7
_FREE_BATCH = 1_000_003
"""Stands for any number of examples in the shapes that a graph computes: no other size is this."""
_SHOWN = 4


def from_onnx(path: Path, name: str, size: Sequence[int] | None = None) -> Network:
    """Return the network in an ONNX file, called `name` where mpicnn did not write it.

    `size` is the shape (c, h, w) of the images, for a file that leaves it open or to replace its
    own. Raises UserError where onnx is missing, the file is damaged, or something in it is not
    what our layers do: then with the operator and the node.
    """
    onnx = needed("onnx", "ONNX files")
    made = _loaded(onnx, path)
    try:
        return _network(onnx, made, name, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _loaded(onnx: Any, path: Path) -> Any:
    """Return the model of a file, its functions written out."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a network in ONNX")
    try:
        onnx.checker.check_model(str(path))
        made = onnx.load(str(path))
        if made.functions:
            made = needed("onnx.inliner", "ONNX files").inline_local_functions(made)
        return made
    except Exception as error:  # onnx, protobuf and NumPy each have their own
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: not a valid ONNX file: {reason}") from None


def _network(onnx: Any, made: Any, name: str, size: Sequence[int] | None) -> Network:
    opsets = {each.domain or "ai.onnx": each.version for each in made.opset_import}
    opset = opsets.get("ai.onnx", 0)
    if opset < OLDEST_OPSET:
        raise UserError(f"opset {opset}, expected {OLDEST_OPSET} or newer; export it anew")
    graph = made.graph
    values: dict[str, Value] = {each.name: _numbers(onnx, each) for each in graph.initializer}
    images, batch, shape = _images(graph, values, size)
    if len(graph.output) != 1:
        raise UserError(f"gives {len(graph.output)} outputs, expected one; export one alone")
    output, own = graph.output[0].name, made.producer_name == "mpicnn"
    nodes = [_node(onnx, each) for each in graph.node]
    readers = Counter(read for node in nodes for read in _numbers_read(node))
    readers[output] += 1
    builder = Builder(shape, readers, batch, output, opset, own=own)
    values[images] = Out(IMAGES, shape)
    _Reading(onnx, builder, values).all(nodes)
    return _made(
        builder,
        values[output],
        graph.name if own else name,
        {p.key: p.value for p in made.metadata_props},
    )


def _numbers_read(node: Node) -> Sequence[str]:
    """Return what a node reads the numbers of: not what it asks for shape or type alone."""
    return {"Shape": (), "CastLike": node.inputs[:1]}.get(node.op, node.inputs)


def _images(
    graph: Any, known: Mapping[str, Value], size: Sequence[int] | None
) -> tuple[str, int, tuple[int, ...]]:
    """Return the name of the graph's input, what stands for its batch, and (c, h, w)."""
    inputs = [each for each in graph.input if each.name not in known]
    if len(inputs) != 1:
        raise UserError(f"takes {len(inputs)} inputs, expected one, the images")
    dims = [d.dim_value for d in inputs[0].type.tensor_type.shape.dim]
    if len(dims) != 4:
        raise UserError(f"takes an input of {len(dims)} axes, expected 4: (batch, c, h, w)")
    shape = tuple(size or dims[1:])
    if dims[1] and shape[0] != dims[1]:
        raise UserError(f"takes images of {dims[1]} channels, but --input says {shape[0]}")
    if not all(shape):
        raise UserError("leaves the size of images open: give it by --input CxHxW")
    return inputs[0].name, dims[0] or _FREE_BATCH, shape


def _numbers(onnx: Any, tensor: Any) -> Any:
    array = onnx.numpy_helper.to_array(tensor)
    return array if array.dtype.kind in "biufS" else np.asarray(array, np.float32)  # bfloat16


def _node(onnx: Any, found: Any) -> Node:
    settings = {each.name: onnx.helper.get_attribute_value(each) for each in found.attribute}
    texts = {k: v.decode(errors="replace") for k, v in settings.items() if isinstance(v, bytes)}
    domain = "" if found.domain in ("", "ai.onnx") else f"{found.domain}."
    return _Found(
        domain + found.op_type, found.name, tuple(found.input), tuple(found.output),
        settings | texts, found,
    )  # fmt: skip


@dataclass(frozen=True)
class _Found(Node):
    """A node beside what it was read from."""

    proto: Any


@dataclass
class _Reading:
    """Read nodes into `builder` and `values`, and collect what cannot be read."""

    onnx: Any
    builder: Builder
    values: dict[str, Value]

    def all(self, nodes: Sequence[Node]) -> None:
        """Read all nodes. Raises UserError with what of them no layer expresses."""
        refused: list[str] = []
        for node in nodes:
            found: Value = Lost()
            try:
                found = self._one(node)
            except UserError as error:
                refused.append(str(error))
            if not isinstance(found, tuple):
                self.values |= dict.fromkeys(node.outputs, found)
            else:
                self.values |= dict(zip(node.outputs, found, strict=False))
        if refused:
            kept = dict.fromkeys(refused)
            more = f"; and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else ""
            raise UserError("; ".join(list(kept)[:_SHOWN]) + more)

    def _one(self, node: Node) -> Any:
        inputs = [self.builder.known(self.values[name]) if name else None for name in node.inputs]
        if any(isinstance(value, Lost) for value in inputs):
            return Lost()
        first = inputs[0] if inputs else None
        if node.op == "Shape" and isinstance(first, Out | Affine):
            return self._shape(node, first if isinstance(first, Out) else first.base)
        if all(value is None or isinstance(value, np.ndarray) for value in inputs):
            return self._computed(node, inputs)
        if node.op not in OPERATORS:
            raise node.refuse(
                "no layer of mpicnn does this; docs/user-guide.md lists the operators that are read"
            )
        try:
            found = OPERATORS[node.op].read(self.builder, node, inputs)
        except (ValueError, TypeError, IndexError, ArithmeticError) as error:
            raise node.refuse(f"its settings or constants do not fit each other: {error}") from None
        for name, value in zip(node.inputs, inputs, strict=True):
            value = self.builder.known(value)
            again = isinstance(found, Out) and isinstance(value, Out) and found == value
            if again or value is found:
                # another name of the same: who reads either, reads both
                self.builder.readers[node.outputs[0]] += self.builder.readers[name] - 1
        return found

    def _shape(self, node: Node, value: Out) -> Any:
        """Return the shape of a value, any number of examples by its own number."""
        whole = (self.builder.batch, *value.shape)
        end = node.get("end", len(whole))
        return np.array(whole[node.get("start", 0) : end], np.int64)

    def _computed(self, node: Node, inputs: Sequence[Any]) -> Any:
        """Return what a node makes of constants, by the reference implementation of ONNX."""
        reference = needed("onnx.reference", "ONNX files")
        if node.op in ("If", "Loop", "Scan") or node.op.startswith("Random"):
            raise node.refuse("no layer of mpicnn does this")
        try:
            assert isinstance(node, _Found)
            fed = {n: v for n, v in zip(node.inputs, inputs, strict=True) if n}
            # a model of this node, as a node alone is taken for one of the newest opset
            helper = self.onnx.helper
            given = [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in fed.items()
            ]
            gives = [helper.make_empty_tensor_value_info(n) for n in node.outputs if n]
            graph = helper.make_graph([node.proto], "constants", given, gives)
            opsets = [helper.make_opsetid("", self.builder.opset)]
            run = reference.ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets))
            return tuple(np.asarray(each) for each in run.run(None, fed))
        except Exception as error:  # whatever the implementation makes of a graph that is wrong
            raise node.refuse(f"of constants: {str(error).strip().split(chr(10))[0]}") from None


def _made(builder: Builder, end: Value, name: str, said: Mapping[str, str]) -> Network:
    """Return the network that ends in `end`, without layers that nothing reads."""
    out = builder.settle(end)
    if len(out.shape) == 3 and out.shape[1:] == (1, 1):
        out = builder.put(Node("Flatten", "", (), ("end",), {}), kinds.Flatten(), [out])
    wanted = {out.layer}
    for each, (_, reads) in reversed(builder.layers.items()):
        if each in wanted:
            wanted.update(reads)
    kept: list[tuple[str, kinds.Layer, Sequence[str]]] = []
    arrays: dict[str, Array] = {}
    for each in filter(wanted.__contains__, builder.layers):
        layer, reads = builder.layers[each]
        layer, own = regrouped(each, layer, builder.arrays.get(each, {}), said)
        kept.append((each, layer, reads))
        arrays |= {f"{each}.{key}": array for key, array in own.items()}
    if not kept:
        raise UserError("gives what it is given: there are no layers in it")
    model = Model(name, builder.shape, tuple(kept))
    check_arrays(model, arrays, "the graph")
    classes, pixels = read_metadata(said, model.input_shape[0], model.classes)
    inside = builder.pixels
    if inside and pixels and pixels.near(inside):
        inside = None  # the same, and what is said is not rounded
    notes = tuple(builder.notes)
    return Network(model, arrays, classes, pixels, inside, notes)
