"""What a network is: named layers, what each of them reads, and what follows from that."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, TypeVar

from mpicnn.errors import UserError
from mpicnn.layers import Flatten
from mpicnn.layers.base import Layer, Param, Shape
from mpicnn.models import entry

T = TypeVar("T")


MOST_LAYERS = 10_000
MOST_NUMBERS = 2**40
"""In one array: above, bytes and FLOP are no longer exact numbers everywhere."""


IMAGES = "input"
"""What a layer reads that takes the images themselves."""


def layer_of(full: str) -> str:
    """Return the layer of a parameter or buffer by its full name: "conv1" of "conv1.w"."""
    return full.rsplit(".", 1)[0]


@dataclass(frozen=True)
class Model:
    """Name a network's layers, from images of `input_shape` (c, h, w) to logits.

    `layers` are given as (name, layer), which reads the layer before it, or (name, layer, inputs)
    with the names of the earlier layers that it reads, "input" for the images. The last one gives
    the logits; the loss is not one of the layers. A network's values are numbered: 0 is the images,
    i + 1 what layer i gives. `frozen` names the layers whose weights never change
    (`mpicnn.models.freezing`).
    Raises UserError if a layer does not fit what it is fed or reads what is not there, if nothing
    reads a layer, if two share a name, or if the last does not give one number per class.
    """

    name: str
    input_shape: Shape
    layers: tuple[Any, ...]
    frozen: frozenset[str] = frozenset()
    sources: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        given: tuple[entry.Node, ...] = self.layers
        if not self.name.isprintable():
            raise UserError(f"network {self.name}: its name does not print; rename its file")
        if len(given) > MOST_LAYERS:
            raise UserError(
                f"network {self.name}: {len(given)} layers, expected at most {MOST_LAYERS}"
            )
        self._check_names([node[0] for node in given])
        known = {IMAGES: 0} | {node[0]: at + 1 for at, node in enumerate(given)}
        sources = tuple(self._sources(at, node, known) for at, node in enumerate(given))
        object.__setattr__(self, "layers", tuple((node[0], node[1]) for node in given))
        object.__setattr__(self, "sources", sources)
        self._check_sizes()
        last = self.shapes[-1]
        if len(last) != 1:
            raise UserError(
                f"network {self.name}: ends in examples of shape {last}, expected one number per "
                "class; end it with a fully connected layer"
            )
        read = {value for values in sources for value in values}
        for at, (name, _) in enumerate(self.layers[:-1]):
            if at + 1 not in read:
                raise UserError(
                    f"network {self.name}, layer {name}: no layer reads it; name it in the inputs "
                    "of another, or take it out"
                )

    def _check_names(self, names: list[str]) -> None:
        for name, count in Counter(names).items():
            if count > 1:
                raise UserError(
                    f"network {self.name}: {count} layers named {name!r}, expected one of each name"
                )
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise UserError(
                    f"network {self.name}: layer name {name!r}, expected a letter and then "
                    "letters, digits, '_' or '-'"
                )

    def _sources(self, at: int, node: entry.Node, known: Mapping[str, int]) -> tuple[int, ...]:
        """Return the numbers of the values that a layer reads, given those of all `known`."""
        name, layer, *more = node
        asked = tuple(more[0]) if more and more[0] else ()
        where = f"network {self.name}, layer {name}"
        entry.check_declared(layer, where)
        for other in asked:
            if other not in known:
                raise UserError(f"{where}: reads {other!r}, expected the name of a layer before it")
            if known[other] > at:
                raise UserError(
                    f"{where}: reads {other}, which comes after it; list layers in an order in "
                    "which each stands behind all its inputs"
                )
        found = tuple(known[other] for other in asked) or (at,)
        if layer.joins != (len(found) > 1):
            wants = "two inputs or more" if layer.joins else "one input"
            raise UserError(
                f"{where}: reads {len(found)} layer(s), but {type(layer).__name__} takes {wants}"
            )
        return found

    def _check_sizes(self) -> None:
        """Raise UserError for a layer whose output or parameters no machine can hold."""
        held = {name: shape for (name, _), shape in zip(self.layers, self.shapes[1:], strict=True)}
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
        return self.shapes[-1][0]

    @cached_property
    def fc_start(self) -> int:
        """Return the index of the first layer of the fully connected segment.

        It begins where the network is one value wide and all contractions behind are fully
        connected: at the last Flatten before the first such layer, else at that layer. It is
        len(layers) in a network without any.
        """
        layers = [layer for _, layer in self.layers]
        convolutions = [i for i, layer in enumerate(layers) if layer.convolves]
        behind = range(convolutions[-1] + 1 if convolutions else 0, len(layers))
        for at in behind:
            if layers[at].kind == "contraction" and self.narrow[at]:
                flattens = [i for i in behind if i < at and isinstance(layers[i], Flatten)]
                return next((i for i in reversed(flattens) if self.narrow[i]), at)
        return len(layers)

    def crossing(self, at: int) -> tuple[int, ...]:
        """Return the values from before layer `at` that it or later layers read, in order."""
        return tuple(value for value in range(at + 1) if self.last_read[value] >= at)

    @cached_property
    def readers(self) -> tuple[int, ...]:
        """Return how many times each value is read, by layers and by the loss."""
        found = Counter(value for values in self.sources for value in values)
        last = len(self.layers)
        return tuple(found[value] + (value == last) for value in range(last + 1))

    @cached_property
    def last_read(self) -> tuple[int, ...]:
        """Return the last layer that reads each value; len(layers) is the loss."""
        found = [len(self.layers)] * (len(self.layers) + 1)
        for at, values in enumerate(self.sources):
            for value in values:
                found[value] = at
        return tuple(found)

    @cached_property
    def narrow(self) -> tuple[bool, ...]:
        """Say of every layer whether it and those behind it read a single value from before it."""
        alive, found = 0, []
        ends = Counter(self.last_read)
        for at in range(len(self.layers)):
            alive += 1 - (ends[at - 1] if at else 0)
            found.append(alive == 1)
        return tuple(found)

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Return the shape of one example of every value: the images, then layers' outputs."""
        shapes = [self.input_shape]
        for (name, layer), values in zip(self.layers, self.sources, strict=True):
            fed = self._fed(layer, values, shapes)
            shapes.append(self._ask(name, layer.out_shape, fed))
        return tuple(shapes)

    @cached_property
    def fed(self) -> tuple[Any, ...]:
        """Return the shape of one example as each layer is fed it: several for one that joins."""
        return tuple(
            self._fed(layer, values, self.shapes)
            for (_, layer), values in zip(self.layers, self.sources, strict=True)
        )

    @staticmethod
    def _fed(layer: Layer, values: Sequence[int], shapes: Sequence[Shape]) -> Any:
        found = tuple(shapes[value] for value in values)
        return found if layer.joins else found[0]

    @cached_property
    def learns(self) -> tuple[bool, ...]:
        """Say of every value whether weights that learn stand before it, so that its gradient is
        wanted."""
        found = [False]
        for (name, layer), values, shape in zip(self.layers, self.sources, self.fed, strict=True):
            own = name not in self.frozen and bool(layer.params(shape))
            found.append(own or any(found[value] for value in values))
        return tuple(found)

    def param_specs(self) -> dict[str, Param]:
        """Return every parameter, whole, by layer and name ("conv1.w")."""
        return self._specs("params")

    def buffer_specs(self) -> dict[str, Param]:
        """Return every buffer (running statistics), whole, by layer and name ("norm1.mean")."""
        return self._specs("buffers")

    def _specs(self, kind: str) -> dict[str, Param]:
        return {
            f"{name}.{key}": param
            for (name, layer), shape in zip(self.layers, self.fed, strict=True)
            for key, param in self._ask(name, getattr(layer, kind), shape).items()
        }

    @property
    def weighted(self) -> tuple[str, ...]:
        """Return the names of the layers with parameters or buffers, in order."""
        specs = self.param_specs() | self.buffer_specs()
        kept = set(map(layer_of, specs))
        return tuple(name for name, _ in self.layers if name in kept)

    def learnt(self, specs: Mapping[str, Param]) -> dict[str, Param]:
        """Return those of some parameters or buffers, by full name, that no frozen layer has."""
        return {n: spec for n, spec in specs.items() if layer_of(n) not in self.frozen}

    @property
    def nodes(self) -> tuple[tuple[str, Layer, tuple[str, ...]], ...]:
        """Return the layers as they can be given: name, layer, and the names of what it reads."""
        names = (IMAGES, *(name for name, _ in self.layers))
        return tuple(
            (name, layer, tuple(names[value] for value in values))
            for (name, layer), values in zip(self.layers, self.sources, strict=True)
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return name, type and settings of every layer as plain data, equal to its JSON."""
        names = (IMAGES, *(name for name, _ in self.layers))
        described = []
        for at, ((name, layer), values) in enumerate(zip(self.layers, self.sources, strict=True)):
            item = entry.describe(name, layer)
            if values != (at,):  # what reads the layer before it says nothing of that
                item["inputs"] = [names[value] for value in values]
            described.append(item)
        return described

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

    def _ask(self, name: str, question: Callable[[Any], T], shape: Any) -> T:
        """Return a layer's answer, with the layer's place before the message of its UserError."""
        try:
            return question(shape)
        except UserError as error:
            raise UserError(f"network {self.name}, layer {name}: {error}") from error
