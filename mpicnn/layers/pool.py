"""Reduce windows of every channel to one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from mpicnn.errors import UserError
from mpicnn.layers._fields import PairField, check_image
from mpicnn.layers.base import Array, Context, Layer, Shape, Tape
from mpicnn.ops.interface import Backend, Pair
from mpicnn.ops.window import Window


@dataclass(frozen=True)
class _Pool(Layer):
    """Say what both kinds of pooling share: the window and the size of the result."""

    reads = frozenset()
    views = frozenset()

    kernel: PairField = PairField(least=1)
    stride: PairField = PairField(least=1, like="kernel")
    padding: PairField = PairField(least=0, default=0, sides=True)
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        kernel, window = self._moves
        if any(2 * max(sides) > k for sides, k in zip(window.padding, kernel, strict=True)):
            raise UserError(
                f"{type(self).__name__}: padding {self.padding} is more than half of the kernel "
                f"{kernel}: a window could lie outside the image, pad less"
            )

    def out_shape(self, shape: Shape) -> Shape:
        """Return (c, oh, ow) for (c, h, w)."""
        check_image(self, shape)
        c, *space = shape
        kernel, window = self._moves
        out = window.pool_shape(tuple(space), kernel, self.ceil_mode)
        found = f"{type(self).__name__}: kernel {kernel}"
        if set(window.dilation) != {1}:
            found += f" with dilation {window.dilation}"
        if min(out) < 1:
            raise UserError(
                f"{found} is larger than the image {tuple(space)} padded by {self.padding}: use a "
                "smaller kernel or fewer poolings"
            )
        if not window.touches(tuple(space), kernel, out):
            raise UserError(
                f"{found} and padding {self.padding} has a window that takes nothing of the image "
                f"{tuple(space)}: pad or dilate less"
            )
        return (c, *out)

    @cached_property
    def _moves(self) -> tuple[Pair, Window]:
        """The kernel, and how it moves."""
        return self.kernel, Window.of(self.stride, self.padding, self._spread)

    @property
    def _spread(self) -> Pair:
        """The distance between the values of a window."""
        return (1, 1)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Return the largest value of every window of x (n, c, h, w), as `torch.nn.MaxPool2d`.

    `stride` is the kernel's size unless given. `padding` is one number, one per axis, or (top,
    bottom, left, right). With `ceil_mode` windows may hang over the lower and right edges.
    `dilation` is the distance between the values of a window. Raises UserError for padding of more
    than half a kernel.
    """

    dilation: PairField = PairField(least=1, default=1)

    @property
    def _spread(self) -> Pair:
        return self.dilation

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of the places of the largest values."""
        return prod(y_shape) * (1 if prod(self._moves[0]) <= 256 else 2)

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        y, argmax = ops.maxpool(x, *self._moves, self.ceil_mode)
        return y, (argmax, x.shape)

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        argmax, x_shape = tape.made
        return ops.maxpool_dx(dy, argmax, x_shape, *self._moves), {}


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Return the mean of every window of x (n, c, h, w), as `torch.nn.AvgPool2d`.

    `stride`, `padding` and `ceil_mode` are those of `MaxPool`. `count_include_pad` says whether
    padding counts as zeros in the mean or not at all.
    """

    count_include_pad: bool = True

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        return ops.avgpool(x, *self._arguments), x.shape

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        return ops.avgpool_dx(dy, tape.made, *self._arguments), {}

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return *self._moves, self.ceil_mode, self.count_include_pad


@dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """Return the mean of every channel over all of space: (n, c, 1, 1) for (n, c, h, w)."""

    reads = frozenset()
    views = frozenset()

    def out_shape(self, shape: Shape) -> Shape:
        """Return (c, 1, 1) for (c, h, w)."""
        check_image(self, shape)
        return (shape[0], *(1 for _ in shape[1:]))

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True), x.shape

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        dx = ops.xp.empty(tape.made, dy.dtype)
        dx[...] = dy / prod(dx.shape[2:])
        return dx, {}
