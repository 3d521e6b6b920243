"""What the values of an ONNX graph are while it is read, and the layers made of it so far."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from mpicnn.errors import UserError
from mpicnn.exchange.pixels import Pixels
from mpicnn.layers import BatchNorm, Conv, GroupNorm, Layer, Linear, Param
from mpicnn.models.model import IMAGES
from mpicnn.ops.interface import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Out:
    """What a layer gives, or the images; `shape` is that of one example."""

    layer: str
    shape: Shape


@dataclass(frozen=True)
class Affine:
    """`base` * `scale` + `shift`, per channel (c,) or of one number, not yet part of a layer.

    `alone` says that nothing else reads `base`, so that its layer may be changed.
    """

    base: Out
    scale: Array
    shift: Array
    alone: bool
    node: Node


@dataclass(frozen=True)
class Channel:
    """One channel of `base`, times `scale` plus `shift`.

    `readers` is how many read `base`; `bare` says that the channel is an axis no more.
    """

    base: Out
    index: int
    scale: float
    shift: float
    readers: int
    bare: bool
    node: Node


@dataclass(frozen=True)
class Padded:
    """`base` with zeros around it: top, bottom, left, right."""

    base: Out
    sides: Shape
    node: Node


@dataclass(frozen=True)
class Grouped:
    """`base` with its channels in groups, (n, groups, rest); normalised where `eps` is a number."""

    base: Out
    groups: int
    node: Node
    eps: float | None = None
    factors: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Term:
    """A part of an activation that exporters write in several nodes: `factor` times `kind` of x.

    `kind` is "erf" (of x / sqrt(2)), "1+erf", "x(1+erf)", "relu6(x+3)" or "x*relu6(x+3)".
    """

    base: Out
    kind: str
    factor: float
    node: Node


@dataclass(frozen=True)
class Lost:
    """What follows from a node that was refused: nothing more is said of it."""


Value = Out | Affine | Channel | Padded | Grouped | Term | Lost | Array
"""A value that is not of the images is an array: a constant."""


@dataclass(frozen=True)
class Node:
    """A node of the graph: operator, name, the names of its values, its settings."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]

    def refuse(self, why: str) -> UserError:
        """Return the error of a node that no layer expresses."""
        return UserError(f"operator {self.op}, node {self.name or self.outputs[0]}: {why}")

    def get(self, name: str, default: Any = None) -> Any:
        """Return a setting, `default` where it is not given."""
        return self.settings.get(name, default)

    def number(self, name: str, default: float) -> float:
        """Return a setting as the decimal number that float32 has rounded."""
        return decimal(self.get(name, default))

    def expect(self, **settings: Any) -> None:
        """Raise UserError where one of the settings is given and is another."""
        for name, wanted in settings.items():
            if (found := self.get(name, wanted)) != wanted:
                raise self.refuse(f"{name} is {found}, expected {wanted}")


def decimal(value: Any) -> float:
    """Return the shortest decimal number that float32 rounds to the same: 0.1 for 0.1."""
    return float(str(np.float32(value)))


FOLDS = (Conv, Linear, BatchNorm, GroupNorm)
"""Layers into which a factor and a shift per channel can be multiplied."""


@dataclass
class Builder:
    """Collect the layers and arrays of a network, in the order of the graph.

    `readers` counts who reads each value of the graph. `own` says that mpicnn wrote it, so that
    names of nodes are names of layers. `batch` stands for the number of examples in shapes;
    `output` is the name of the graph's, `opset` the version of its operators.
    """

    shape: Shape
    readers: Counter[str]
    batch: int
    output: str
    opset: int
    own: bool = False
    layers: dict[str, tuple[Layer, tuple[str, ...]]] = field(default_factory=dict)
    arrays: dict[str, dict[str, Array]] = field(default_factory=dict)
    pixels: Pixels | None = None
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    settled: dict[int, tuple[Value, Out]] = field(default_factory=dict)

    def put(
        self,
        node: Node,
        layer: Layer,
        inputs: Sequence[Out],
        arrays: Mapping[str, Array] | None = None,
        weight: str = "",
    ) -> Out:
        """Add a layer that reads `inputs`, with its arrays ("w", …), and return what it gives.

        `weight` is the name that the graph has for its weights, which names the layer. Raises
        UserError where the layer does not fit what it reads, or its arrays do not fit it.
        """
        shapes = tuple(each.shape for each in inputs)
        try:
            fed: Any = shapes if layer.joins else shapes[0]
            shape = layer.out_shape(fed)
            specs: dict[str, Param] = layer.params(fed) | layer.buffers(fed)
        except UserError as error:
            raise node.refuse(str(error)) from None
        held = {key: np.asarray(value, np.float32) for key, value in (arrays or {}).items()}
        for key, spec in specs.items():
            if key not in held or held[key].shape != spec.shape:
                found = held[key].shape if key in held else "missing"
                raise node.refuse(f"{key} is {found}, expected {spec.shape}")
        name = self._name(node, layer, weight)
        self.layers[name] = layer, tuple(each.layer for each in inputs)
        if held:
            self.arrays[name] = held
        return Out(name, shape)

    def _name(self, node: Node, layer: Layer, weight: str) -> str:
        """Return a name for a layer that no other has: by its weights, its node, or its kind."""
        kind = type(layer).__name__.lower()
        found = ""
        if self.own:
            found = node.name
        elif match := re.fullmatch(r"(.+)\.(weight|w|gamma|scale)", weight):
            found = match[1]
        elif node.name.startswith("/"):  # /layer1/layer1.0/conv1/Conv
            parts = [*node.name.split("/")[1:-1], ""]
            found = ".".join(a for a, b in pairwise(parts) if not b.startswith(f"{a}."))
        found = re.sub(r"[^A-Za-z0-9_-]+", "_", found).strip("_")
        if not found or not found[0].isalpha() or found == IMAGES:
            self.counts[kind] += 1
            found = f"{kind}{'_' if kind[-1].isdigit() else ''}{self.counts[kind]}"
        name, number = found, 2
        while name in self.layers:
            name, number = f"{found}_{number}", number + 1
        return name

    def lone(self, name: str) -> bool:
        """Say whether one node alone reads a value of the graph."""
        return self.readers[name] == 1

    def known(self, value: Value | None) -> Value | None:
        """Return a value, or what a layer gives where the value has become part of it."""
        return self.settled[id(value)][1] if id(value) in self.settled else value

    def settle(self, value: Value) -> Out:
        """Return a value as what a layer gives.

        Raises UserError, naming the operator, for what no layer expresses.
        """
        if isinstance(value, Out):
            return value
        if isinstance(value, Affine):
            # once, however many read it; the value is kept so that no other gets its id
            if id(value) not in self.settled:
                self.settled[id(value)] = value, self._fold(value)
            return self.settled[id(value)][1]
        if isinstance(value, Channel | Padded | Grouped | Term):
            raise value.node.refuse("what it gives is not what a layer of mpicnn does")
        raise UserError("a constant where something of the images was expected")

    def _fold(self, value: Affine) -> Out:
        """Multiply a factor and a shift into the layer before them, or into the normalisation."""
        name, c = value.base.layer, value.base.shape[0]
        scale, shift = (
            np.broadcast_to(a, (c,)).astype(np.float64) for a in (value.scale, value.shift)
        )
        if name == IMAGES and value.alone and self.pixels is None and np.all(scale > 0):
            mean, std = (-shift / scale).tolist(), (1 / scale).tolist()
            self.pixels = Pixels(tuple(map(decimal, mean)), tuple(map(decimal, std)))
            return value.base
        layer, reads = self.layers.get(name, (None, ()))
        if not value.alone or not isinstance(layer, FOLDS):
            raise value.node.refuse(
                "a factor or shift that no convolution, fully connected layer or normalisation "
                "before it can take"
            )
        held = self.arrays[name]
        key, bias = ("w", "b") if isinstance(layer, Conv | Linear) else ("gamma", "beta")
        weights, shifts = held[key].astype(np.float64), held.get(bias, np.zeros(c))
        factors = scale.reshape(-1, *(1,) * (weights.ndim - 1))
        held[key] = (weights * factors).astype(np.float32)
        if bias in held or np.any(shift):
            held[bias] = (shifts * scale + shift).astype(np.float32)
        if isinstance(layer, Conv | Linear) and bias in held:
            layer = replace(layer, bias=True)
        self.layers[name] = layer, reads
        return value.base

    def affine(
        self, node: Node, value: Value, read: str, scale: Any, shift: Any
    ) -> Affine | Channel:
        """Return value * scale + shift; `read` is the value's name in the graph."""
        if isinstance(value, Channel):
            shifted = value.shift * float(scale) + float(shift)
            return replace(value, scale=value.scale * float(scale), shift=shifted, node=node)
        alone = self.lone(read)
        if isinstance(value, Affine) and alone:
            scales, shifts = value.scale * scale, value.shift * scale + shift
            return Affine(value.base, scales, shifts, value.alone, node)
        base = self.settle(value)
        one = np.asarray(1.0)
        return Affine(base, one * scale, one * shift, alone, node)
