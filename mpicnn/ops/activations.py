"""Functions that act on every value by itself: one table, a row for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mpicnn.ops.interface import Array


@dataclass(frozen=True)
class Activation:
    """A function of x, and its derivative times dy.

    Both take the module of the arrays first. `reads` says what the derivative is given besides dy:
    the function's input "x", or its output "y".
    """

    function: Callable[[Any, Array], Array]
    derivative: Callable[[Any, Array, Array], Array]
    reads: str = "y"


def _relu_dx(xp: Any, dy: Array, y: Array) -> Array:
    return xp.where(y > 0, dy, dy.dtype.type(0))


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        # NaN stays NaN
        "relu": Activation(lambda xp, x: xp.maximum(x, 0), _relu_dx),
    }
)
