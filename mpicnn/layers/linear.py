"""Multiply features with a learned matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers._fields import check_init, check_positive
from mpicnn.layers.base import Array, Context, Layer, Param, Shape, Tape, operands, taped
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Linear(Layer):
    """Return y = x w^T + b for x (n, c), w (o, c) and b (o,): a fully connected layer.

    `init` is how w starts (see `Param`). Raises UserError for values that make no layer.

    Locally w may be some of the rows, or the columns that belong to the local x.
    """

    kind: ClassVar[str] = "contraction"
    reads = frozenset("x")
    views = frozenset()

    o: int
    bias: bool = True
    init: str | float = "he"

    def __post_init__(self) -> None:
        check_positive(self, "o")
        check_init(self, self.init)

    def out_shape(self, shape: Shape) -> Shape:
        """Return (o,) for (c,)."""
        if len(shape) != 1:
            raise UserError(
                f"Linear: the input has shape {shape} where (c,) was expected: put Flatten in front"
            )
        return (self.o,)

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return w (o, c) and, unless it is switched off, b (o,)."""
        params = {"w": Param((self.o, shape[0]), self.init, shape[0])}
        if self.bias:
            params["b"] = Param((self.o,), "zeros", bias=True)
        return params

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        x, w, made = operands(ops, x, p["w"], ctx)
        return ops.linear(x, w, p.get("b"), ctx.joined), made

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        grads = {}
        if ctx.need_dw and "b" in p:
            grads["b"] = ops.bias_grad(dy)
        x, w = taped(tape.made, tape.x, p["w"])
        dy = ops.operand(dy)
        if ctx.need_dw:
            grads["w"] = ops.linear_dw(x, dy, ctx.sums.get("w"))
        return ops.linear_dx(dy, w) if ctx.need_dx else None, grads
