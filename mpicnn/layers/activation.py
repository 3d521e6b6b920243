"""Bend activations."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mpicnn.layers.base import Array, Context, Layer


@dataclass(frozen=True)
class ReLU(Layer):
    """Return the larger of x and 0, for x of any shape."""

    def forward(
        self, ops: ModuleType, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        y = x if ctx.joined else ops.relu(x)
        return y, y

    def backward(
        self, ops: ModuleType, dy: Array, saved: Any, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        return ops.relu_dx(dy, saved) if ctx.need_dx else None, {}
