"""Convolve images with learned filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers._fields import PairField, check_image, check_init, check_positive
from mpicnn.layers.base import Array, Context, Layer, Param, Shape, Tape
from mpicnn.ops.interface import Backend
from mpicnn.ops.window import Window


@dataclass(frozen=True)
class Conv(Layer):
    """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw): y (n, o, oh, ow).

    As `torch.nn.Conv2d`. `padding` is one number, one per axis, or (top, bottom, left, right).
    `init` is how w starts (see `Param`). Raises UserError for values that
    make no convolution.

    Locally w may be a part of the whole: some rows (output channels `ctx.channels`, all of x's
    channels), or, with one group, the columns that belong to the channels of the local x.
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
        parts = [
            ops.conv2d(
                _columns(x, c),
                _rows(w, o),
                None if b is None else _rows(b, o),
                self._window.grouped(groups),
                ctx.joined,
            )
            for o, c, groups in self._segments(x, w, ctx)
        ]
        return parts[0] if len(parts) == 1 else ops.xp.concatenate(parts, axis=1), None

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        x, w = tape.x, p["w"]
        segments = list(self._segments(x, w, ctx))
        grads = {}
        if ctx.need_dw:
            dws = [
                ops.conv2d_dw(
                    _columns(x, c),
                    _columns(dy, o),
                    (o.stop - o.start, *w.shape[1:]),
                    self._window.grouped(groups),
                )
                for o, c, groups in segments
            ]
            grads["w"] = dws[0] if len(dws) == 1 else ops.xp.concatenate(dws)
            if "b" in p:
                grads["b"] = ops.bias_grad(dy)
        if not ctx.need_dx:
            return None, grads
        if len(segments) == 1 and segments[0][1] == slice(0, x.shape[1]):
            window = self._window.grouped(segments[0][2])
            return ops.conv2d_dx(dy, w, x.shape, window), grads
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
        group, some whole groups and another part.
        """
        if self.groups == 1:
            yield slice(0, w.shape[0]), slice(0, x.shape[1]), 1
            return
        per_o, per_c = self.o // self.groups, x.shape[1] // self.groups
        lo, hi = ctx.channels
        cuts = (lo, -(-lo // per_o) * per_o, hi // per_o * per_o, hi)
        spans = list(pairwise(sorted({cut for cut in cuts if lo <= cut <= hi})))
        for start, stop in spans or [(lo, hi)]:
            first = min(start // per_o, self.groups - 1)
            groups = max(1, (stop - start) // per_o)
            yield (
                slice(start - lo, stop - lo),
                slice(first * per_c, (first + groups) * per_c),
                groups,
            )


def _rows(a: Array, part: slice) -> Array:
    """Return some rows of an array, or it itself where they are all."""
    return a if part == slice(0, a.shape[0]) else a[part]


def _columns(a: Array, part: slice) -> Array:
    """Return some channels of an array, or it itself where they are all."""
    return a if part == slice(0, a.shape[1]) else a[:, part]
