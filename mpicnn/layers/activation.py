"""Apply a function to every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpicnn.layers.base import Context, Layer
from mpicnn.ops.activations import ACTIVATIONS
from mpicnn.ops.interface import Array, Backend


class Activation(Layer):
    """Apply the function `name` of `mpicnn.ops.activations` to x of any shape."""

    name: ClassVar[str]

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        y = x if ctx.joined else ops.activate(self.name, x)
        return y, y if ACTIVATIONS[self.name].reads == "y" else x

    def backward(
        self, ops: Backend, dy: Array, saved: Any, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        return ops.activate_dx(self.name, dy, saved) if ctx.need_dx else None, {}


@dataclass(frozen=True)
class ReLU(Activation):
    """Return the larger of x and 0."""

    name: ClassVar[str] = "relu"
