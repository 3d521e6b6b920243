"""How the values of a network lie at one place of the mesh, and what their readers want of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpicnn.division.layout import Site
from mpicnn.division.operations import Slot
from mpicnn.division.placement import Layout, Shape
from mpicnn.division.plan import LOSS
from mpicnn.division.propagation import LayerDivision
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model


@dataclass(frozen=True)
class Value:
    """Hold how a value lies: its whole shape, its layout, and the slot of the part here."""

    shape: Shape
    layout: Layout
    slot: Slot = -1


Wish = tuple[object, ...]
"""What a reader asks of a value's layout, in terms that are the same on all ranks.

Two wishes may come to one layout on some ranks and not on others; to take them for one wish there
would have ranks begin other collectives.
"""


@dataclass(frozen=True)
class Lying:
    """Hold how a layer wants what it reads, and how its output lies, of whole shape `y_shape`."""

    x: tuple[Layout, ...]
    wishes: tuple[Wish, ...]
    y_shape: Shape
    y: Layout


@dataclass(frozen=True)
class Reader:
    """Hold what layer `name`, or the loss, wants of a value."""

    name: str
    wish: Wish
    layout: Layout


@dataclass
class Network:
    """Know a network's layouts at one place of the mesh, and number the slots of its program.

    `count` examples are in the batch. `weights` holds the full names of every layer's parameters
    and buffers by their short ones.
    """

    model: Model
    site: Site
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
        """Return how a layer's inputs are to lie, some layouts of `values` being known.

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
                x = tuple(self.site.input_layout(s.shape, division) for s in sources)
            wish = self.wish(name, self.model.sources[index][0])
            y = self.site.output_layout(x[0], y_shape, division)
            return Lying(x, (wish,) * len(sources), y_shape, y)
        except ValueError as error:
            w = layer.params(self.model.fed[index]).get("w")
            what = f"{name}.w of shape {w.shape}" if w else f"the channels of layer {name}"
            raise UserError(
                f"plan: {what} cannot be shared: {error}; "
                "give the ranks that shall stay idle a share of 0"
            ) from None

    def wish(self, name: str, first: int) -> Wish:
        """Return the wish of a layer for its inputs, of which `first` is one."""
        division = self.divisions[name]
        if division.follows:
            return "as", first
        rows = (
            (row.x, row.alone, row.owner, shares)
            for row, shares in zip(division.rows, division.shares, strict=True)
        )
        return "by", *rows

    def lie_all(self, values: dict[int, Value], indices: Iterable[int]) -> dict[int, Lying]:
        """Return how some layers lie, one after another, and note it in a copy of `values`."""
        known, found = dict(values), {}
        for index in indices:
            found[index] = lying = self.lie(known, index)
            known[index + 1] = Value(lying.y_shape, lying.y)
        return found

    def loss(self, logits: Value) -> Reader:
        """Return how the loss wants the logits."""
        division, wish = self.divisions[LOSS], self.wish(LOSS, len(self.model.layers))
        if division.follows:
            return Reader(LOSS, wish, logits.layout)
        return Reader(LOSS, wish, self.site.input_layout(logits.shape, division))
