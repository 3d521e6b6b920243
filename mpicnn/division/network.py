"""The layout of every value of a network, and the layouts in which layers want to read it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpicnn.division.layout import Layouts
from mpicnn.division.operations import Call, Slot
from mpicnn.division.placement import Layout, Shape
from mpicnn.division.plan import LOSS
from mpicnn.division.propagation import LayerDivision
from mpicnn.division.strategy import CHANNEL
from mpicnn.errors import UserError
from mpicnn.layers.activation import ReLU
from mpicnn.layers.conv import Conv
from mpicnn.layers.linear import Linear

if TYPE_CHECKING:
    from mpicnn.models import Model

_NONE = np.zeros(0, np.int64)


class Value(NamedTuple):
    """Hold the whole shape of a value, its layout, and its slot."""

    shape: Shape
    layout: Layout
    slot: Slot = -1


class Lying(NamedTuple):
    """Hold the layouts in which a layer reads its inputs, and its output, which has no slot yet."""

    x: tuple[Layout, ...]
    y: Value


class Reader(NamedTuple):
    """Hold the layout in which layer `name`, or the loss, reads a value."""

    name: str
    layout: Layout


@dataclass
class Network:
    """Know a network's layouts, and number the slots of its program.

    `count` examples are in the batch. `weights` holds the full names of every layer's parameters
    and buffers by their short ones.
    """

    model: Model
    layouts: Layouts
    divisions: dict[str, LayerDivision]
    count: int
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    grads: dict[str, Slot] = field(default_factory=dict)
    use: dict[str, Slot] = field(default_factory=dict)
    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def slot(self) -> Slot:
        """Return a new slot."""
        return next(self.numbers)

    def lie(self, values: dict[int, Value], index: int) -> Lying:
        """Return the layouts of a layer's inputs and output, given those of `values`.

        Raises UserError where its channels are too few for the ranks that share them.
        """
        name, layer = self.model.layers[index]
        sources = [values[v] for v in self.model.sources[index]]
        division = self.divisions[name]
        y_shape = (sources[0].shape[0], *self.model.shapes[index + 1])
        try:
            if division.follows:
                x = (sources[0].layout,) * len(sources)
            else:
                x = tuple(self.layouts.input_layout(s.shape, division) for s in sources)
            return Lying(x, Value(y_shape, self.layouts.output_layout(x[0], y_shape, division)))
        except ValueError as error:
            w = layer.params(self.model.fed[index]).get("w")
            what = f"{name}.w of shape {w.shape}" if w else f"the channels of layer {name}"
            raise UserError(
                f"plan {self.layouts.plan.name}: {what} cannot be shared: {error}; "
                "give the ranks that shall stay idle a share of 0"
            ) from None

    def lie_all(self, values: dict[int, Value], indices: Iterable[int]) -> dict[int, Lying]:
        """Return what `lie` does for some layers in their order, given the layouts of `values`."""
        known, found = dict(values), {}
        for index in indices:
            found[index] = self.lie(known, index)
            known[index + 1] = found[index].y
        return found

    def loss(self, logits: Value) -> Reader:
        """Return the layout in which the loss reads the logits."""
        division = self.divisions[LOSS]
        if division.follows:
            return Reader(LOSS, logits.layout)
        return Reader(LOSS, self.layouts.input_layout(logits.shape, division))

    def call(
        self, index: int, x_shapes: tuple[Shape, ...], lying: Lying, together: int, joined: bool
    ) -> Call:
        """Return a run of a layer by all ranks, on no examples yet, of `together` that are
        normalised together."""
        name, layer = self.model.layers[index]
        division = self.divisions[name]
        grid = self.layouts.plan.grid
        return Call(
            name=name,
            layer=layer,
            number=index,
            x_shapes=x_shapes,
            x_layouts=lying.x,
            y_shape=lying.y.shape,
            y_layout=lying.y.layout,
            positions=_NONE,
            channels=(0, lying.y.shape[CHANNEL]),
            together=together,
            weights=self.weights[name],
            sum_axes=tuple(
                a for a, row in enumerate(division.rows) if row.shares_batch and grid[a] > 1
            ),
            owners=tuple((a, row.owner) for a, row in enumerate(division.rows) if row.alone),
            idle=False,
            need_dx=any(self.model.learns[value] for value in self.model.sources[index]),
            joined=joined,
            frozen=division.frozen,
        )


def may_join(model: Model, at: int) -> bool:
    """Say whether a layer is a contraction and the next a ReLU on its output, which nothing else
    reads.

    Classes derived from these may do something else.
    """
    return (
        at + 1 < len(model.layers)
        and type(model.layers[at][1]) in (Conv, Linear)
        and type(model.layers[at + 1][1]) is ReLU
        and model.sources[at + 1] == (at + 1,)
        and model.readers[at + 1] == 1
    )
