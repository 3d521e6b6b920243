"""The operations of a program. They pass values on through numbered slots.

A slot holds one array, or one that is on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.move import Move
from mpicnn.division.placement import Shape
from mpicnn.layers.base import Layer

Positions = NDArray[np.int64]
Slot = int

EXAMPLES: Slot = 0
"""The slot of the examples that a rank reads."""


@dataclass(frozen=True)
class Hop:
    """Describe one Move along one mesh axis of a tensor of `shape` as seen along that axis."""

    axis: int
    move: Move
    shape: Shape

    @property
    def adjoint(self) -> Hop:
        """Return the hop that carries gradients back."""
        return replace(self, move=self.move.adjoint)


@dataclass(frozen=True)
class Start:
    """Begin to carry `x` along a hop for layer `name`; `y` is what arrives."""

    name: str
    hop: Hop
    x: Slot
    y: Slot
    back: bool = False

    @property
    def detail(self) -> str:
        """Return the collective and the direction in words."""
        return f"{self.hop.move.collective}, {_direction(self.back)}"


@dataclass(frozen=True)
class Wait:
    """Wait for what is on its way to slot `y`; `name` and `detail` are those of its beginning."""

    name: str
    y: Slot
    detail: str
    back: bool = False


@dataclass(frozen=True)
class Call:
    """Describe one run of a layer on this rank's part of its inputs.

    Shapes are local; `positions` are the places in the global batch of the local rows of y;
    `channels` the local range of y's channels; `count` the examples of the batch, or micro-batch,
    that are normalised together; `sum_axes` the mesh axes that divide the batch;
    `weights` the full names of the layer's parameters and buffers by their short ones; `idle` marks
    a rank that leaves the layer to another one; `need_dx` says whether a gradient of its inputs is
    wanted; `joined` a contraction and a ReLU behind it that go forward in one pass; `frozen` a
    layer that does not learn, and computes as in tests.
    """

    name: str
    layer: Layer
    index: int
    x_shapes: tuple[Shape, ...]
    y_shape: Shape
    positions: Positions
    channels: tuple[int, int]
    count: int
    weights: Mapping[str, str]
    sum_axes: tuple[int, ...]
    idle: bool
    need_dx: bool
    joined: bool = False
    frozen: bool = False

    @property
    def fed(self) -> Any:
        """Return one example's shape here as the layer is fed it: several for one that joins."""
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


@dataclass(frozen=True)
class Forward:
    """Run a layer on `x`; `saved` takes what it makes for its backward pass, where there is one.

    `over` says that it may write over the first of `x`.
    """

    call: Call
    x: tuple[Slot, ...]
    y: Slot
    saved: Slot | None
    use: Mapping[str, Slot]
    over: bool = False


@dataclass(frozen=True)
class Backward:
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


@dataclass(frozen=True)
class Loss:
    """Take the loss of logits `x` and their gradient `dx` (None: the answers alone are wanted).

    `labels` are the places in the global batch of the rows on which this rank has the loss.
    """

    x: Slot
    dx: Slot | None
    labels: Positions


@dataclass(frozen=True)
class Rows:
    """Take some rows of `x`, without a copy."""

    x: Slot
    y: Slot
    rows: slice


@dataclass(frozen=True)
class Store:
    """Put `x` into some rows of `y`, whose local shape is `shape`."""

    x: Slot
    y: Slot
    rows: slice
    shape: Shape


@dataclass(frozen=True)
class Accumulate:
    """Add `x` to `to`; `y` is the sum, which may be written over one of them, `over`."""

    x: Slot
    to: Slot
    y: Slot
    over: Slot | None = None


@dataclass(frozen=True)
class Sum:
    """Begin to sum gradients of the parameters `names` over the ranks along `axes`, as one message.

    `y` is on its way until all of `x` are summed.
    """

    names: tuple[str, ...]
    axes: tuple[int, ...]
    x: tuple[Slot, ...]
    y: Slot


@dataclass(frozen=True)
class Send:
    """Begin to send `x` to the stage behind this one, or before it: `number` tells values apart.

    Every rank deals with the one at its own place in the other stage's grid. `y` is on its way
    until it has been sent.
    """

    name: str
    x: Slot
    y: Slot
    shape: Shape
    number: int
    back: bool

    @property
    def detail(self) -> str:
        """Return the direction in words."""
        return f"send between stages, {_direction(self.back)}"


@dataclass(frozen=True)
class Receive:
    """Begin to receive `y`, of local `shape`, from the stage before this one, or behind it."""

    name: str
    y: Slot
    shape: Shape
    number: int
    back: bool

    @property
    def detail(self) -> str:
        """Return the direction in words."""
        return f"receive between stages, {_direction(self.back)}"


@dataclass(frozen=True)
class Update:
    """Change parameters now by their gradients times `scale`: after a round (OWT)."""

    grads: Mapping[str, Slot]
    scale: float


@dataclass(frozen=True)
class Free:
    """Let go of what slots hold."""

    slots: tuple[Slot, ...]


Operation = (
    Start | Wait | Forward | Backward | Loss | Rows | Store | Accumulate | Sum | Send | Receive
    | Update | Free
)  # fmt: skip


def _direction(back: bool) -> str:
    return "backward" if back else "forward"


def reads(op: Operation) -> tuple[Slot, ...]:
    """Return the slots that an operation looks at."""
    match op:
        case Start() | Loss() | Rows() | Send():
            return (op.x,)
        case Wait():
            return (op.y,)
        case Forward():
            return (*op.x, *op.use.values())
        case Backward():
            tape = (op.saved, *op.x, *(() if op.y is None else (op.y,)))
            return (op.dy, *tape, *op.use.values(), *op.grads.values())
        case Store():
            return (op.x, op.y)
        case Accumulate():
            return (op.x, op.to)
        case Sum():
            return op.x
        case Update():
            return tuple(op.grads.values())
    return ()


def writes(op: Operation) -> tuple[Slot, ...]:
    """Return the slots that an operation fills, or that something is on its way to from then on."""
    match op:
        case Forward():
            return (op.y,) if op.saved is None else (op.y, op.saved)
        case Backward():
            return (*(slot for slot in op.dx if slot is not None), *op.grads.values())
        case Loss():
            return () if op.dx is None else (op.dx,)
        case Start() | Rows() | Store() | Accumulate() | Sum() | Send() | Receive():
            return (op.y,)
    return ()
