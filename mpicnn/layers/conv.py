"""Convolve images with learned filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers._fields import PairField, check_image, check_init, check_positive, first_group
from mpicnn.layers.base import Array, Context, Layer, Param, Shape, Tape, operands, taped
from mpicnn.ops.interface import Backend
from mpicnn.ops.window import Window


@dataclass(frozen=True)
class Conv(Layer):
    """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw): y (n, o, oh, ow).

    As `torch.nn.Conv2d`. `padding` is one number, one per axis, or (top, bottom, left, right).
    `init` is how w starts (see `Param`). Raises UserError for values that
    make no convolution.

    Locally w may be a part of the whole: some rows (output channels `ctx.channels`, with all of x's
    channels, or with those of their groups), or, with one group, the columns that belong to the
    channels of the local x.
    """

    kind: ClassVar[str] = "contraction"
    convolves: ClassVar[bool] = True
    reads = frozenset("x")
    views = frozenset()

    o: int
    kernel: PairField = PairField(least=1)
    stride: PairField = PairField(least=1, default=1)
    padding: PairField = PairField(least=0, default=0, sides=True)
    dilation: PairField = PairField(least=1, default=1)
    groups: int = 1
    bias: bool = True
    init: str | float = "he"

    def __post_init__(self) -> None:
        check_positive(self, "o", "groups")
        check_init(self, self.init)
        if self.o % self.groups:
            raise UserError(f"Conv: {self.o} outputs do not divide into {self.groups} groups")

    def out_shape(self, shape: Shape) -> Shape:
        """Return (o, oh, ow) for (c, h, w)."""
        check_image(self, shape)
        c, *space = shape
        if c % self.groups:
            raise UserError(f"Conv: {c} input channels do not divide into {self.groups} groups")
        out = self._window.conv_shape(tuple(space), self.kernel)
        if min(out) < 1:
            raise UserError(
                f"Conv: kernel {self.kernel} with dilation {self.dilation} is larger than the "
                f"image {tuple(space)} padded by {self.padding}: use a smaller kernel or pad more"
            )
        return (self.o, *out)

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return w (o, c/groups, kh, kw) and, unless it is switched off, b (o,)."""
        c_group = shape[0] // self.groups
        fan_in = c_group * self.kernel[0] * self.kernel[1]
        params = {"w": Param((self.o, c_group, *self.kernel), self.init, fan_in)}
        if self.bias:
            params["b"] = Param((self.o,), "zeros", bias=True)
        return params

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        w, b = p["w"], p.get("b")
        segments = list(self._segments(x, w, ctx))
        if len(segments) == 1:
            ((_, c, groups),) = segments
            x, w, made = operands(ops, _columns(x, c), w, ctx)
            return ops.conv2d(x, w, b, self._window.grouped(groups), ctx.joined), made
        parts = [
            ops.conv2d(
                x[:, c], w[o], None if b is None else b[o], self._window.grouped(groups), ctx.joined
            )
            for o, c, groups in segments
        ]
        if not parts:  # no output of any group is here, and perhaps none of x's channels
            size = self._window.conv_shape(x.shape[2:], self.kernel)
            return ops.xp.empty((x.shape[0], 0, *size), x.dtype), None
        return ops.xp.concatenate(parts, axis=1), None

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        x, w = tape.x, p["w"]
        grads = {"b": ops.bias_grad(dy)} if ctx.need_dw and "b" in p else {}
        segments = list(self._segments(x, w, ctx))
        if len(segments) == 1:
            ((_, c, groups),) = segments
            window = self._window.grouped(groups)
            part = _columns(x, c)
            read, kernels = taped(tape.made, part, w)
            dy = ops.operand(dy)
            if ctx.need_dw:
                grads["w"] = ops.conv2d_dw(read, dy, w.shape, window)
            if not ctx.need_dx:
                return None, grads
            dx = ops.conv2d_dx(dy, kernels, part.shape, window)
            return _within(ops, dx, x.shape, c), grads
        if ctx.need_dw:
            dws = [
                ops.conv2d_dw(x[:, c], dy[:, o], w[o].shape, self._window.grouped(groups))
                for o, c, groups in segments
            ]
            grads["w"] = ops.xp.concatenate(dws or [w])
        if not ctx.need_dx:
            return None, grads
        dx = ops.xp.zeros(x.shape, dy.dtype)
        for o, c, groups in segments:
            window = self._window.grouped(groups)
            dx[:, c] = ops.conv2d_dx(dy[:, o], w[o], x[:, c].shape, window)
        return dx, grads

    @cached_property
    def _window(self) -> Window:
        return Window.of(self.stride, self.padding, self.dilation, self.groups)

    def _segments(self, x: Array, w: Array, ctx: Context) -> Iterator[tuple[slice, slice, int]]:
        """Yield local rows of w, the channels of x that they read, and their number of groups.

        A range of output channels may begin and end inside a group: then there is a part of a
        group, some whole groups and another part. An empty range of a layer in groups has none.
        """
        if self.groups == 1:
            yield slice(0, w.shape[0]), slice(0, x.shape[1]), 1
            return
        per_o, per_c = self.o // self.groups, w.shape[1]
        lo, hi = ctx.channels
        begin = first_group(x.shape[1], per_c, self.groups, lo // per_o)
        cuts = (lo, -(-lo // per_o) * per_o, hi // per_o * per_o, hi)
        spans = list(pairwise(sorted({cut for cut in cuts if lo <= cut <= hi})))
        for start, stop in spans:
            first = start // per_o
            groups = max(1, (stop - start) // per_o)
            c = (first - begin) * per_c
            yield slice(start - lo, stop - lo), slice(c, c + groups * per_c), groups


def _columns(x: Array, part: slice) -> Array:
    """Return some channels of x, or x itself where they are all."""
    return x if part == slice(0, x.shape[1]) else x[:, part]


def _within(ops: Backend, dx: Array, shape: Shape, part: slice) -> Array:
    """Return the gradient of all channels, which is 0 but for a part, or `dx` where that is all."""
    if tuple(dx.shape) == tuple(shape):
        return dx
    whole = ops.xp.zeros(shape, dx.dtype)
    whole[:, part] = dx
    return whole
