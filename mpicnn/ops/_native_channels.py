"""Add up and normalise channels by compiled kernels, as `mpicnn.ops.native` says."""

from __future__ import annotations

import numpy as np

from mpicnn.ops._native_check import array, channels_array
from mpicnn.ops._native_core import core
from mpicnn.ops.interface import Array


def bias_grad(dy: Array) -> Array:
    """Return the gradient of `conv2d` or `linear` by b, given dy (n, o) or (n, o, h, w)."""
    return channel_sums(array("dy", dy))


def channel_sums(a: Array, b: Array | None = None) -> Array:
    """Return the sum of a, or of a * b, over all axes but 1: values by fours, these in float64."""
    cells = channels_array("a", a)
    sums = np.empty(cells.shape[1], cells.dtype)
    if b is None:
        core.channel_sums(cells, sums)
    else:
        b = array("b", b, like=a, shape=a.shape).reshape(cells.shape)
        core.channel_sums(cells, b, sums)
    return sums


def moments(x: Array, planes: bool = False) -> tuple[Array, Array]:
    """Return the mean of every channel, and the sum of squares about it, in float64."""
    cells = _cells("x", x, planes)
    means, squares = np.empty((2, cells.shape[1]))
    core.moments(cells, means, squares)
    shape = x.shape[:2] if planes else x.shape[1:2]
    return means.reshape(shape), squares.reshape(shape)


def normalise(x: Array, mean: Array, scale: Array, shift: Array, over: bool = False) -> Array:
    """Return (x - mean) * scale + shift: one of each per channel (c,), or per plane (n, c)."""
    cells, each = _cells("x", x, mean.ndim == 2), _each(x, mean)
    named = ("mean", mean), ("scale", scale), ("shift", shift)
    numbers = (array(name, a, like=x, shape=each).reshape(-1) for name, a in named)
    y = cells if over else np.empty_like(cells)
    core.normalise(cells, *numbers, y)
    return y.reshape(x.shape)


def normalise_sums(dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """Return the sums of dy and of dy * (x - mean) that belong to each mean."""
    cells = _cells("x", x, mean.ndim == 2)
    dy = array("dy", dy, like=x, shape=x.shape).reshape(cells.shape)
    mean = array("mean", mean, like=x, shape=_each(x, mean))
    sums, products = np.empty_like(mean), np.empty_like(mean)
    core.normalise_sums(dy, cells, mean.reshape(-1), sums.reshape(-1), products.reshape(-1))
    return sums, products


def normalise_dx(dy: Array, x: Array, mean: Array, factors: Array, over: bool = False) -> Array:
    """Return dy * scale - ((x - mean) * along + shift), given these three as `factors`."""
    cells, each = _cells("x", x, mean.ndim == 2), _each(x, mean)
    dy = array("dy", dy, like=x, shape=x.shape).reshape(cells.shape)
    mean = array("mean", mean, like=x, shape=each).reshape(-1)
    factors = array("factors", factors, like=x, shape=(3, *each)).reshape(-1)
    dx = dy if over else np.empty_like(dy)
    core.normalise_dx(dy, cells, mean, factors, dx)
    return dx.reshape(x.shape)


def lrn(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Return y = x * scale**-beta and scale = k + alpha / size * (sum of x**2 over a window)."""
    cells = channels_array("x", x)
    _positive("size", size)
    y, scale = np.empty_like(cells), np.empty_like(cells)
    core.lrn(cells, size, alpha, beta, k, y, scale)
    return y.reshape(x.shape), scale.reshape(x.shape)


def lrn_dx(
    dy: Array, x: Array, y: Array, scale: Array, size: int, alpha: float, beta: float
) -> Array:
    """Return the gradient of `lrn` by x, given what it returned."""
    cells = channels_array("x", x)
    _positive("size", size)
    others = (
        array(name, value, like=x, shape=x.shape).reshape(cells.shape)
        for name, value in (("dy", dy), ("y", y), ("scale", scale))
    )
    dy, y, scale = others
    dx = np.empty_like(cells)
    core.lrn_dx(dy, cells, y, scale, size, alpha, beta, dx)
    return dx.reshape(x.shape)


def _cells(name: str, x: Array, planes: bool) -> Array:
    """Return x (n, c, …) as (n, c, inner), or with `planes` as one example of n * c channels."""
    cells = channels_array(name, x)
    n, c, inner = cells.shape
    return cells.reshape(1, n * c, inner) if planes else cells


def _each(x: Array, mean: Array) -> tuple[int, ...]:
    """Return the shape of one number per channel, or per plane where `mean` has two axes."""
    return x.shape[:2] if mean.ndim == 2 else x.shape[1:2]


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
