"""What a network is: named layers in a row, and what follows from them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from mpicnn.errors import UserError
from mpicnn.layers import Flatten
from mpicnn.layers.base import Param, Shape
from mpicnn.models import entry

T = TypeVar("T")


MOST_LAYERS = 10_000
MOST_NUMBERS = 2**40
"""In one array: above, bytes and FLOP are no longer exact numbers everywhere."""


@dataclass(frozen=True)
class Model:
    """Name a network's layers in order, from images of `input_shape` (c, h, w) to logits.

    The loss is not one of the layers. Raises UserError if a layer does not fit what it is fed, if
    two layers share a name, or if the last layer does not give one number per class.
    """

    name: str
    input_shape: Shape
    layers: tuple[entry.Named, ...]

    def __post_init__(self) -> None:
        if not self.name.isprintable():
            raise UserError(f"network {self.name}: its name does not print; rename its file")
        if len(self.layers) > MOST_LAYERS:
            raise UserError(
                f"network {self.name}: {len(self.layers)} layers, expected at most {MOST_LAYERS}"
            )
        counts = Counter(name for name, _ in self.layers)
        for name, count in counts.items():
            if count > 1:
                raise UserError(
                    f"network {self.name}: {count} layers named {name!r}, expected one of each name"
                )
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise UserError(
                    f"network {self.name}: layer name {name!r}, expected a letter and then "
                    "letters, digits, '_' or '-'"
                )
        self._check_sizes()
        last = self.shapes()[-1]
        if len(last) != 1:
            raise UserError(
                f"network {self.name}: ends in examples of shape {last}, expected one number per "
                "class; end it with a fully connected layer"
            )

    def _check_sizes(self) -> None:
        """Raise UserError for a layer whose output or parameters no machine can hold."""
        shapes = self.shapes()
        held = {name: shape for (name, _), shape in zip(self.layers, shapes[1:], strict=True)}
        held |= {name: param.shape for name, param in self.param_specs().items()}
        for name, shape in held.items():
            if prod(shape) > MOST_NUMBERS:
                raise UserError(
                    f"network {self.name}: {name}: {' x '.join(map(str, shape))} numbers, expected "
                    f"at most {MOST_NUMBERS}"
                )

    @property
    def classes(self) -> int:
        """Return the number of classes: the length of one example's logits."""
        return self.shapes()[-1][0]

    @property
    def fc_start(self) -> int:
        """Return the index of the first layer of the fully connected segment.

        It is the last Flatten before the first fully connected layer, else that layer; len(layers)
        in a network without any.
        """
        layers = [layer for _, layer in self.layers]
        connected = (layer.kind == "contraction" and not layer.convolves for layer in layers)
        first = next((i for i, found in enumerate(connected) if found), len(layers))
        if first == len(layers):
            return first
        flattens = [i for i in range(first) if isinstance(layers[i], Flatten)]
        return flattens[-1] if flattens else first

    def shapes(self) -> list[Shape]:
        """Return the shape of one example before each layer, and after the last."""
        shapes = [self.input_shape]
        for name, layer in self.layers:
            shapes.append(self._ask(name, layer.out_shape, shapes[-1]))
        return shapes

    def shape_before(self, name: str) -> Shape:
        """Return the shape of one example as the layer `name` is fed it."""
        return self.shapes()[[other for other, _ in self.layers].index(name)]

    def param_specs(self) -> dict[str, Param]:
        """Return every parameter, whole, by layer and name ("conv1.w")."""
        return {
            f"{name}.{key}": param
            for (name, layer), shape in zip(self.layers, self.shapes(), strict=False)
            for key, param in self._ask(name, layer.params, shape).items()
        }

    def buffer_specs(self) -> dict[str, Param]:
        """Return every buffer (running statistics), whole, by layer and name ("norm1.mean")."""
        return {
            f"{name}.{key}": buffer
            for (name, layer), shape in zip(self.layers, self.shapes(), strict=False)
            for key, buffer in self._ask(name, layer.buffers, shape).items()
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return name, type and settings of every layer as plain data, equal to its JSON."""
        return [entry.describe(name, layer) for name, layer in self.layers]

    @classmethod
    def from_description(
        cls, name: str, input_shape: Iterable[int], description: Iterable[Mapping[str, Any]]
    ) -> Model:
        """Build the network that `describe` described. Raises UserError where it cannot."""
        layers = tuple(
            entry.build(item, f"network {name}, layer {index}")
            for index, item in enumerate(description, start=1)
        )
        return cls(name, tuple(input_shape), layers)

    def to_toml(self) -> str:
        """Return the network as the text of a TOML file that `load` reads."""
        tables = []
        for item in self.describe():
            lines = [f"{key} = {json.dumps(v)}" for key, v in item.items() if v is not None]
            tables.append("\n".join(["[[layer]]", *lines]))
        return "\n\n".join(tables) + "\n"

    def _ask(self, name: str, question: Callable[[Shape], T], shape: Shape) -> T:
        """Return a layer's answer, with the layer's place before the message of its UserError."""
        try:
            return question(shape)
        except UserError as error:
            raise UserError(f"network {self.name}, layer {name}: {error}") from error
