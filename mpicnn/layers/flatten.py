"""Turn images into rows of features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mpicnn.layers.base import Array, Context, Layer, Shape, Tape
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Flatten(Layer):
    """Return x (n, c, h, w) as (n, c * h * w); features of one channel lie together.

    One input channel becomes h * w output channels: channels lo … hi - 1 are features
    lo * h * w … hi * h * w - 1.
    """

    reads = frozenset()

    def out_shape(self, shape: Shape) -> Shape:
        """Return (c * h * w,) for (c, h, w)."""
        return (math.prod(shape),)

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        return ops.flat(x).reshape(x.shape[0], math.prod(x.shape[1:])), x.shape

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        return dy.reshape(tape.made) if ctx.need_dx else None, {}
