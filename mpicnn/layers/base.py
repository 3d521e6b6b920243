"""What every layer is: shapes, parameters, forward and backward on the arrays of any backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mpicnn.ops.interface import Array as Array
from mpicnn.ops.interface import Backend

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Param:
    """Describe one parameter (or buffer) of a layer by its whole, undivided shape.

    `init` is "he" (normal, variance 2 / fan_in; He et al. 2015), "xavier", "zeros" or "ones", or a
    float: normal with that standard deviation, as in cuda-convnet's configurations. `fan_in` is
    the number of inputs that feed one output. `bias` marks what weight decay leaves alone and the
    bias learning rate applies to.
    """

    shape: Shape
    init: str | float
    fan_in: int = 1
    bias: bool = False


@dataclass(frozen=True)
class Tape:
    """Hold what a layer's backward pass reads beside dy.

    `x` and `y` are there where the layer's `reads` names them, else None; `made` is what forward
    returned beside y.
    """

    x: Any = None
    y: Any = None
    made: Any = None


def whole_batch(partial: Array) -> Array:
    """Return `partial` as it is: the sum over the batch where one rank has all of it."""
    return partial


@dataclass
class Context:
    """Tell a layer which part of the batch and of the channels this rank computes.

    `positions` are the places in the global batch of the local rows (int64, one per row);
    `channels` is the half-open range of output channels (axis 1 of y) held here; `count` the
    number of examples, over all ranks, that are normalised together; `batch_sum` sums a per-rank
    array of float64 over the ranks that divide the batch between them and is the only way in which
    a layer sees other ranks. Under `joined` a contraction does the forward pass of the ReLU behind
    it too, and that ReLU none. `over` names the arrays that nobody else reads any more, so that a
    layer may write its results over them: "x" (the first of several) in the forward pass, "dy" in
    the backward pass. `need_dx` and `need_dw` say which gradients are wanted: those of the input,
    those of the parameters. A frozen layer is never under `train`.
    """

    train: bool
    step: int
    seed: int
    layer: int
    count: int
    positions: NDArray[np.int64]
    channels: tuple[int, int]
    need_dx: bool = True
    need_dw: bool = True
    batch_sum: Callable[[Array], Array] = field(default=whole_batch)
    sums: Mapping[str, Array] = field(default_factory=dict)
    joined: bool = False
    over: frozenset[str] = frozenset()


def operands(ops: Backend, x: Array, w: Array, ctx: Context) -> tuple[Any, Any, Any]:
    """Return x and w as products read them, and what of that the backward pass is to be given.

    That is what `taped` takes: a pair with None for what is read as it is, or not at all, or None
    for both.
    """
    read = ops.operand(x), ops.operand(w)
    kept_x = read[0] if ctx.need_dw and read[0] is not x else None
    kept_w = read[1] if ctx.need_dx and read[1] is not w else None
    return *read, None if kept_x is None and kept_w is None else (kept_x, kept_w)


def taped(made: Any, x: Any, w: Any) -> tuple[Any, Any]:
    """Return x and w as the forward pass read them, given what `operands` made and them."""
    kept_x, kept_w = made or (None, None)
    return x if kept_x is None else kept_x, w if kept_w is None else kept_w


class Layer:
    """Compute on the local part of a tensor, without knowing of MPI, devices or other ranks.

    `kind` says which placements a layer works under (`mpicnn.division.strategy`): "contraction" for
    convolution and fully connected layers, "channelwise" for layers that treat every channel by
    itself, "examplewise" for layers that need all channels of an example. `convolves` tells
    convolutions from other contractions, which are the fully connected layers. `joins` marks a
    layer of several inputs: its methods take a tuple of shapes and a list of arrays in place of one
    `shape` and `x`, and return a list of gradients in place of `dx`.

    Three more tell programs which arrays they may free or write over. `reads` names what the
    backward pass is given beside dy and what forward made: "x", "y", both or neither. It may see
    nothing else of them: what is not named is freed or written over. `views` names what may be a
    view of another array's memory in training: "y" of x, "dx" of dy. `overwrites` says whether y is
    written over x, and dx over dy, where `Context.over` allows it. Their defaults are safe for
    every layer whose `made` holds arrays of its own alone.
    """

    kind: ClassVar[str] = "channelwise"
    convolves: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    reads: frozenset[str] = frozenset({"x", "y"})
    views: frozenset[str] = frozenset({"y", "dx"})
    overwrites: ClassVar[bool] = False

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape of one output example for one input example of `shape`.

        Raises UserError where the layer does not fit the shape.
        """
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return the parameters for input examples of `shape`, whole, by name ("w", "b", …)."""
        return {}

    def buffers(self, shape: Shape) -> dict[str, Param]:
        """Return the state that training changes but no gradient does (running statistics)."""
        return {}

    def batch_sums(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the lengths, in float64, of what forward and backward give to `batch_sum`."""
        return (), ()

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of what `forward` returns beside y, for local shapes (n, …)."""
        return 0

    def tape(self, x: Any, y: Array, made: Any) -> Tape:
        """Return what `backward` may see of a forward pass on x that returned y and `made`."""
        return Tape(x if "x" in self.reads else None, y if "y" in self.reads else None, made)

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        """Return y, and what `backward` needs beside what `reads` names: arrays made here.

        `p` holds local parameters and buffers.
        """
        raise NotImplementedError

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        """Return dx (None where `ctx.need_dx` is false) and the local parameter gradients.

        Those need not be made where `ctx.need_dw` is false. The gradients are of the *sum* over the
        local examples: whoever calls brings them home.
        """
        raise NotImplementedError
