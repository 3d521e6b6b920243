"""Bring several inputs together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers.base import Array, Context, Layer, Shape, Tape
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Join(Layer):
    """Say what layers of several inputs share: shapes and arrays come as a sequence."""

    joins: ClassVar[bool] = True

    def _refuse(self, shapes: Any, expected: str) -> UserError:
        listed = " and ".join(str(shape) for shape in shapes)
        return UserError(f"{type(self).__name__}: the inputs have shapes {listed}; {expected}")


class Add(Join):
    """Return the sum of inputs of one shape: the end of a residual block (He et al. 2016)."""

    reads = frozenset()
    views = frozenset({"dx"})
    overwrites: ClassVar[bool] = True

    def out_shape(self, shape: Any) -> Shape:
        """Return the shape that all inputs have."""
        if len(set(shape)) > 1:
            raise self._refuse(shape, "expected one shape for all")
        found: Shape = shape[0]
        return found

    def forward(self, ops: Backend, x: Any, p: dict[str, Array], ctx: Context) -> tuple[Array, Any]:
        first, second, *others = x
        y = ops.xp.add(first, second, out=first if "x" in ctx.over else None)
        for other in others:
            y += other
        return y, len(x)

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Any, dict[str, Array]]:
        return [dy] * tape.made, {}


class Multiply(Join):
    """Return the product of x (n, c, …) and gates (n, c, 1, …) or (n, c, …), item by item.

    Gates of size 1 in space hold for all of it: squeeze-and-excitation (Hu et al. 2018).
    """

    reads = frozenset("x")
    views = frozenset()

    def out_shape(self, shape: Any) -> Shape:
        """Return the first input's shape."""
        first, *others = shape
        gates = (first, (first[0], *(1 for _ in first[1:])))
        if len(others) != 1 or others[0] not in gates:
            raise self._refuse(shape, f"expected two, the second {gates[0]} or {gates[1]}")
        found: Shape = first
        return found

    def forward(self, ops: Backend, x: Any, p: dict[str, Array], ctx: Context) -> tuple[Array, Any]:
        a, b = x
        return a * b, None

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Any, dict[str, Array]]:
        a, b = tape.x
        db = dy * a
        if b.shape != a.shape:
            db = db.sum(axis=tuple(range(2, a.ndim)), keepdims=True)
        return [dy * b, db], {}


class Concat(Join):
    """Lay the channels of inputs of equal size in space one behind the other: (n, c1 + c2, …)."""

    kind: ClassVar[str] = "examplewise"
    reads = frozenset()
    views = frozenset()

    def out_shape(self, shape: Any) -> Shape:
        """Return (c1 + c2 + …, h, w)."""
        if len({each[1:] for each in shape}) > 1:
            raise self._refuse(shape, "expected shapes that differ in channels alone")
        return (sum(each[0] for each in shape), *shape[0][1:])

    def forward(self, ops: Backend, x: Any, p: dict[str, Array], ctx: Context) -> tuple[Array, Any]:
        return ops.xp.concatenate(list(x), axis=1), [each.shape[1] for each in x]

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Any, dict[str, Array]]:
        bounds = (0, *accumulate(tape.made))
        return [ops.xp.ascontiguousarray(dy[:, lo:hi]) for lo, hi in pairwise(bounds)], {}
