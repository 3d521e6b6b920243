"""Functions that act on every value by itself: one table, a row for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from mpicnn.ops.interface import Array


@dataclass(frozen=True)
class Activation:
    """A function of x, and its derivative times dy.

    Both take the module of the arrays first, and last the slope of leaky ReLU, which others ignore.
    `reads` says what the derivative is given besides dy: the function's input "x", or its output
    "y". Backends with a kernel of that name, and one with "_dx" behind it, use these instead.
    """

    function: Callable[[Any, Array, float], Array]
    derivative: Callable[[Any, Array, Array, float], Array]
    reads: str = "y"


def _relu_dx(xp: Any, dy: Array, y: Array, slope: float) -> Array:
    return xp.where(y > 0, dy, dy.dtype.type(0))


def _relu6(xp: Any, x: Array, slope: float) -> Array:
    return xp.minimum(xp.maximum(x, 0), 6)


def _relu6_dx(xp: Any, dy: Array, y: Array, slope: float) -> Array:
    return xp.where((y > 0) & (y < 6), dy, dy.dtype.type(0))


def _leaky_relu(xp: Any, x: Array, slope: float) -> Array:
    return xp.where(x > 0, x, x * x.dtype.type(slope))


def _leaky_relu_dx(xp: Any, dy: Array, y: Array, slope: float) -> Array:
    return xp.where(y > 0, dy, dy * dy.dtype.type(slope))


def _hard_swish(xp: Any, x: Array, slope: float) -> Array:
    return x * _relu6(xp, x + 3, slope) / 6


def _hard_swish_dx(xp: Any, dy: Array, x: Array, slope: float) -> Array:
    between = dy * (x / 3 + dy.dtype.type(0.5))
    return xp.where(x <= -3, dy.dtype.type(0), xp.where(x >= 3, dy, between))


def _sigmoid(xp: Any, x: Array, slope: float) -> Array:
    small = xp.exp(-abs(x))  # never overflows
    return xp.where(x > 0, x.dtype.type(1), small) / (1 + small)


def _silu(xp: Any, x: Array, slope: float) -> Array:
    return x * _sigmoid(xp, x, slope)


def _silu_dx(xp: Any, dy: Array, x: Array, slope: float) -> Array:
    s = _sigmoid(xp, x, slope)
    return dy * s * (1 + x * (1 - s))


_erfc = np.frompyfunc(math.erfc, 1, 1)


def _below(x: Array) -> Array:
    """Return how likely normal numbers are below x: one by one, as NumPy has no erf."""
    halves: Any = _erfc(x * -math.sqrt(0.5)) / 2
    return halves.astype(x.dtype)


def _gelu(xp: Any, x: Array, slope: float) -> Array:
    return x * _below(x)


def _gelu_dx(xp: Any, dy: Array, x: Array, slope: float) -> Array:
    bell = xp.exp(x * x / -2) / x.dtype.type(math.sqrt(2 * math.pi))
    return dy * (_below(x) + x * bell)


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        # NaN stays NaN
        "relu": Activation(lambda xp, x, slope: xp.maximum(x, 0), _relu_dx),
        # Howard et al. 2017; as torch.nn.ReLU6
        "relu6": Activation(_relu6, _relu6_dx),
        # Maas et al. 2013; y has the sign of x as long as the slope is not negative
        "leakyrelu": Activation(_leaky_relu, _leaky_relu_dx),
        # Howard et al. 2019: x * relu6(x + 3) / 6
        "hardswish": Activation(_hard_swish, _hard_swish_dx, "x"),
        "sigmoid": Activation(_sigmoid, lambda xp, dy, y, slope: dy * y * (1 - y)),
        "tanh": Activation(
            lambda xp, x, slope: xp.tanh(x), lambda xp, dy, y, slope: dy * (1 - y * y)
        ),
        # Elfwing et al. 2018: x * sigmoid(x)
        "silu": Activation(_silu, _silu_dx, "x"),
        # Hendrycks and Gimpel 2016, exact, with erf: x times the normal distribution's probability
        # of values below x
        "gelu": Activation(_gelu, _gelu_dx, "x"),
    }
)
