"""Apply a function to every value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mpicnn.layers._fields import check_numbers
from mpicnn.layers.base import Context, Layer, Tape
from mpicnn.ops.activations import ACTIVATIONS
from mpicnn.ops.interface import Array, Backend


@dataclass(frozen=True)
class Activation(Layer):
    """Apply the function `name` of `mpicnn.ops.activations` to x of any shape."""

    name: ClassVar[str]
    slope: ClassVar[float] = 0.0
    views = frozenset()
    overwrites: ClassVar[bool] = True

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What the derivative is given: x or y."""
        return frozenset(ACTIVATIONS[self.name].reads)

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        return x if ctx.joined else ops.activate(self.name, x, self.slope, "x" in ctx.over), None

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        read = tape.y if tape.x is None else tape.x
        return ops.activate_dx(self.name, dy, read, self.slope, "dy" in ctx.over), {}


class ReLU(Activation):
    """Return the larger of x and 0."""

    name: ClassVar[str] = "relu"


class ReLU6(Activation):
    """Return x cut off below 0 and above 6."""

    name: ClassVar[str] = "relu6"


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """Return x where it is positive, else x * slope. Raises UserError for a negative slope."""

    name: ClassVar[str] = "leakyrelu"

    slope: float = 0.01  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_numbers(self, 0, "slope")


class Sigmoid(Activation):
    """Return 1 / (1 + e**-x)."""

    name: ClassVar[str] = "sigmoid"


class Tanh(Activation):
    """Return the hyperbolic tangent of x."""

    name: ClassVar[str] = "tanh"


class SiLU(Activation):
    """Return x * sigmoid(x), also called swish."""

    name: ClassVar[str] = "silu"


class HardSwish(Activation):
    """Return x * relu6(x + 3) / 6, which is close to SiLU."""

    name: ClassVar[str] = "hardswish"


class GELU(Activation):
    """Return x * (1 + erf(x / sqrt(2))) / 2: the exact form, not the one with tanh."""

    name: ClassVar[str] = "gelu"
