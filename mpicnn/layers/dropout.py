"""Drop activations at random in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpicnn.errors import UserError
from mpicnn.layers._fields import is_number
from mpicnn.layers.base import Array, Context, Layer, Shape, Tape
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Dropout(Layer):
    """Set values to 0 with probability `rate` in training and divide the others by 1 - rate.

    Srivastava et al. 2014, scaled in training as `torch.nn.Dropout`. The mask depends on the seed,
    the layer, the step and the global place of each value alone, so that it is the same for every
    division of the batch and of the channels. Raises UserError for a rate outside [0, 1).
    """

    reads = frozenset()

    rate: float = 0.5

    def __post_init__(self) -> None:
        if not is_number(self.rate, 0) or self.rate >= 1:
            raise UserError(f"Dropout: rate is {self.rate!r}: give a number in [0, 1)")

    @property
    def views(self) -> frozenset[str]:  # type: ignore[override]
        """Return nothing where values are dropped: all is then computed anew."""
        return frozenset() if self.rate else super().views

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of the mask."""
        return math.prod(y_shape) * itemsize if self.rate else 0

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        if not ctx.train or self.rate == 0:
            return x, None
        first = ctx.channels[0] * math.prod(x.shape[2:])
        y, mask = ops.dropout(x, self.rate, ctx.seed, ctx.layer, ctx.step, ctx.positions, first)
        return y, mask

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        return dy if tape.made is None else ops.mul(dy, tape.made), {}
