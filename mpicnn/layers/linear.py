"""Multiply features with a learned matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers._fields import check_init, check_positive, first_group
from mpicnn.layers.base import Array, Context, Layer, Param, Shape, Tape, operands, taped
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Linear(Layer):
    """Return y = x w^T + b for x (n, c), w (o, c/groups) and b (o,): a fully connected layer.

    With several `groups` connections are restricted: the first o/groups outputs see the first
    c/groups inputs alone, and so on, as if w were block-diagonal (Krizhevsky 2014 suggests so for
    larger systems). `init` is how w starts (see `Param`). Raises UserError for values that make no
    layer.

    Locally w may be some of the rows (outputs `ctx.channels`, with all of x's inputs, or with those
    of their groups), or, with one group, the columns that belong to the local x.
    """

    kind: ClassVar[str] = "contraction"
    reads = frozenset("x")
    views = frozenset()

    o: int
    bias: bool = True
    init: str | float = "he"
    groups: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "o", "groups")
        check_init(self, self.init)
        if self.o % self.groups:
            raise UserError(f"Linear: {self.o} outputs do not divide into {self.groups} groups")

    def out_shape(self, shape: Shape) -> Shape:
        """Return (o,) for (c,)."""
        if len(shape) != 1:
            raise UserError(
                f"Linear: the input has shape {shape} where (c,) was expected: put Flatten in front"
            )
        if shape[0] % self.groups:
            raise UserError(f"Linear: {shape[0]} inputs do not divide into {self.groups} groups")
        return (self.o,)

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return w (o, c/groups) and, unless it is switched off, b (o,)."""
        c_group = shape[0] // self.groups
        params = {"w": Param((self.o, c_group), self.init, c_group)}
        if self.bias:
            params["b"] = Param((self.o,), "zeros", bias=True)
        return params

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        w, b = p["w"], p.get("b")
        if self.groups == 1:
            x, w, made = operands(ops, x, w, ctx)
            return ops.linear(x, w, b, ctx.joined), made
        y = ops.xp.empty((x.shape[0], w.shape[0]), x.dtype)
        for o, c in self._blocks(x, w, ctx):
            y[:, o] = ops.linear(x[:, c], w[o], None if b is None else b[o], ctx.joined)
        return y, None

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        grads = {}
        if ctx.need_dw and "b" in p:
            grads["b"] = ops.bias_grad(dy)
        x, w = taped(tape.made, tape.x, p["w"])
        if self.groups == 1:
            dy = ops.operand(dy)
        if ctx.need_dw:
            grads["w"] = self._dw(ops, x, dy, w, ctx)
        if not ctx.need_dx:
            return None, grads
        if self.groups == 1:
            return ops.linear_dx(dy, w), grads
        dx = ops.xp.zeros(x.shape, dy.dtype)  # of groups whose outputs lie elsewhere
        for o, c in self._blocks(x, w, ctx):
            dx[:, c] = ops.linear_dx(dy[:, o], w[o])
        return dx, grads

    def _dw(self, ops: Backend, x: Array, dy: Array, w: Array, ctx: Context) -> Array:
        """Return the gradient of w, added in place to the sum of earlier ones if there is one."""
        total = ctx.sums.get("w")
        if self.groups == 1:
            return ops.linear_dw(x, dy, total)
        if total is None:
            total = ops.xp.zeros(w.shape, x.dtype)
        for o, c in self._blocks(x, w, ctx):
            ops.linear_dw(x[:, c], dy[:, o], total[o])
        return total

    def _blocks(self, x: Array, w: Array, ctx: Context) -> Iterator[tuple[slice, slice]]:
        """Yield, for every group with outputs here, its local rows of w and its columns of x."""
        per_o, per_c = self.o // self.groups, w.shape[1]
        lo, hi = ctx.channels
        begin = first_group(x.shape[1], per_c, self.groups, lo // per_o)
        for group in range(lo // per_o, -(-hi // per_o)):
            start, stop = max(lo, group * per_o), min(hi, (group + 1) * per_o)
            c = (group - begin) * per_c
            yield slice(start - lo, stop - lo), slice(c, c + per_c)
