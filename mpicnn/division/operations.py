"""The operations of a program. They pass values on through numbered slots.

A slot holds one array, or one that is on its way. The same operations make up the program of all
ranks, where shapes are whole and layouts say which part a rank has, and that of one rank, where
shapes, ranges and moves are those of its part: `at` returns them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.move import Hop, direction
from mpicnn.division.placement import Layout, Ranges, Shape, box_shape, local_shape, region
from mpicnn.division.strategy import BATCH, CHANNEL
from mpicnn.layers.base import Layer

Positions = NDArray[np.int64]
Slot = int
Coords = tuple[int, ...]

EXAMPLES: Slot = 0
"""The slot of the examples that a rank reads."""


class Start(NamedTuple):
    """Begin to carry `x` along a hop for layer `name`; `y` is what arrives."""

    name: str
    hop: Hop
    x: Slot
    y: Slot
    back: bool = False

    @property
    def detail(self) -> str:
        """Return the collective and the direction in words."""
        return self.hop.detail(self.back)

    def at(self, coords: Coords) -> Start:
        """Return what the rank at `coords` does."""
        hop = self.hop.at(coords)
        return self if hop is self.hop else self._replace(hop=hop)


class Wait(NamedTuple):
    """Wait for what is on its way to slot `y`; `name` and `detail` are those of its beginning."""

    name: str
    y: Slot
    detail: str
    back: bool = False


class Call(NamedTuple):
    """Describe one run of a layer, the network's `number`-th.

    `positions` are the places in the global batch of the rows of y; `channels` the range of y's
    channels; `together` the examples of the batch, or micro-batch, that are normalised together;
    `weights` the full names of the layer's parameters and buffers by their short ones; `sum_axes`
    the mesh axes that divide the batch; `owners` the axes along which one rank has the layer alone,
    each with that rank, and `idle` marks a rank that leaves it to another; `need_dx` says whether a
    gradient of its inputs is wanted; `joined` a contraction and a ReLU behind it that go forward in
    one pass; `frozen` a layer that does not learn, and computes as in tests.
    """

    name: str
    layer: Layer
    number: int
    x_shapes: tuple[Shape, ...]
    x_layouts: tuple[Layout, ...]
    y_shape: Shape
    y_layout: Layout
    positions: Positions
    channels: tuple[int, int]
    together: int
    weights: Mapping[str, str]
    sum_axes: tuple[int, ...]
    owners: tuple[tuple[int, int], ...]
    idle: bool
    need_dx: bool
    joined: bool = False
    frozen: bool = False

    @property
    def fed(self) -> Any:
        """Return one example's shape as the layer is fed it: several for one that joins."""
        shapes = tuple(shape[1:] for shape in self.x_shapes)
        return shapes if self.layer.joins else shapes[0]

    @property
    def views_x(self) -> bool:
        """Say whether y may be a view of x."""
        done = self.joined and self.layer.kind != "contraction"  # by the contraction before it
        return done or "y" in self.layer.views

    @property
    def batch_sums(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the lengths of what is summed over the ranks of a batch, forward and backward."""
        return ((), ()) if self.frozen else self.layer.batch_sums(self.fed)

    @property
    def category(self) -> str:
        """Return "convolution" or "other", as step times are split in Marques' figures 6 and 8."""
        return "convolution" if self.layer.convolves else "other"

    def at(self, coords: Coords) -> Call:
        """Return what of it the rank at `coords` does."""
        box = region(self.y_shape, self.y_layout, coords)
        return self._replace(
            x_shapes=tuple(
                [
                    local_shape(shape, layout, coords)
                    for shape, layout in zip(self.x_shapes, self.x_layouts, strict=True)
                ]
            ),
            y_shape=box_shape(box),
            positions=self.positions[slice(*box[BATCH])],
            channels=box[CHANNEL],
            idle=any(rank != coords[axis] for axis, rank in self.owners),
        )


class Forward(NamedTuple):
    """Run a layer on `x`; `saved` takes what it makes for its backward pass, where there is one.

    `over` says that it may write over the first of `x`.
    """

    call: Call
    x: tuple[Slot, ...]
    y: Slot
    saved: Slot | None
    use: Mapping[str, Slot]
    over: bool = False


class Backward(NamedTuple):
    """Run a layer backward on `dy`, and on what it reads of `x`, `y` and `saved`.

    `over` says that it may write over `dy`. `dx` takes the gradients of its inputs, None for one
    that nobody wants; those of its parameters are added to what the slots `grads` hold.
    """

    call: Call
    dy: Slot
    dx: tuple[Slot | None, ...]
    saved: Slot
    use: Mapping[str, Slot]
    grads: Mapping[str, Slot]
    x: tuple[Slot, ...]
    y: Slot | None
    over: bool = False


class Loss(NamedTuple):
    """Take the loss of logits `x` and their gradient `dx` (None: the answers alone are wanted).

    `labels` are the places in the global batch of the rows, which lie as `layout` says.
    """

    x: Slot
    dx: Slot | None
    labels: Positions
    layout: Layout

    def at(self, coords: Coords) -> Loss:
        """Return what of it the rank at `coords` does."""
        ((lo, hi),) = region((self.labels.size,), self.layout, coords)
        return self._replace(labels=self.labels[lo:hi])


class Rows(NamedTuple):
    """Take some rows of `x`, without a copy: each rank its own, as `ranges` says.

    What they are of all ranks has whole `shape` and lies as `layout` says.
    """

    x: Slot
    y: Slot
    ranges: Ranges
    shape: Shape
    layout: Layout
    rows: slice = slice(0)

    def at(self, coords: Coords) -> Rows:
        """Return what the rank at `coords` does."""
        return self._replace(rows=_slice(self.ranges, coords))


class Store(NamedTuple):
    """Put `x` into some rows of `y`, of whole `shape` and `layout`: each rank as `ranges` says."""

    x: Slot
    y: Slot
    ranges: Ranges
    shape: Shape
    layout: Layout
    rows: slice = slice(0)

    def at(self, coords: Coords) -> Store:
        """Return what the rank at `coords` does."""
        shape = local_shape(self.shape, self.layout, coords)
        return self._replace(rows=_slice(self.ranges, coords), shape=shape)


class Accumulate(NamedTuple):
    """Add `x` to `to`; `y` is the sum, which may be written over one of them, `over`."""

    x: Slot
    to: Slot
    y: Slot
    over: Slot | None = None


class Sum(NamedTuple):
    """Begin to sum gradients of the parameters `names` over the ranks along `axes`, as one message.

    `y` is on its way until all of `x` are summed.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    x: tuple[Slot, ...]
    y: Slot


class Send(NamedTuple):
    """Begin to send `x` to the stage behind this one, or before it: `number` tells values apart.

    Every rank deals with the one at its own place in the other stage's grid. `y` is on its way
    until it has been sent.
    """

    name: str
    x: Slot
    y: Slot
    shape: Shape
    layout: Layout
    number: int
    back: bool

    @property
    def detail(self) -> str:
        """Return the direction in words."""
        return f"send between stages, {direction(self.back)}"

    def at(self, coords: Coords) -> Send:
        """Return what the rank at `coords` does."""
        return self._replace(shape=local_shape(self.shape, self.layout, coords))


class Receive(NamedTuple):
    """Begin to receive `y` from the stage before this one, or behind it."""

    name: str
    y: Slot
    shape: Shape
    layout: Layout
    number: int
    back: bool

    @property
    def detail(self) -> str:
        """Return the direction in words."""
        return f"receive between stages, {direction(self.back)}"

    def at(self, coords: Coords) -> Receive:
        """Return what the rank at `coords` does."""
        return self._replace(shape=local_shape(self.shape, self.layout, coords))


class Update(NamedTuple):
    """Change parameters now by their gradients times `scale`: after a round (OWT)."""

    grads: Mapping[str, Slot]
    scale: float


class Free(NamedTuple):
    """Let go of what slots hold."""

    slots: tuple[Slot, ...]


Operation = (
    Start | Wait | Forward | Backward | Loss | Rows | Store | Accumulate | Sum | Send | Receive
    | Update | Free
)  # fmt: skip


def _slice(ranges: Ranges, coords: Coords) -> slice:
    return slice(*(int(end[coords]) for end in ranges))
