"""Check arguments and allocate results for the compiled pooling kernels.

They know one padding for both sides of an axis: the surplus of one side becomes part of the image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpicnn.ops._native_check import array, check_pool_window, integers, pooled, shape4
from mpicnn.ops._native_core import core
from mpicnn.ops.interface import Array, Shape, Sizes
from mpicnn.ops.window import Window, even_out, even_shape, first_places, inside


def maxpool(x: Array, kernel: Sizes, window: Window, ceil_mode: bool) -> tuple[Array, Array]:
    """Return the largest value of every window of x, and where in the window it is."""
    x = array("x", x, ndim=4)
    y_shape = pooled("x", x.shape, kernel, window, ceil_mode)
    taps = math.prod(kernel)
    if taps > 1 << 16:
        raise ValueError(f"kernel must not have more than 65536 places: {kernel}")
    y = np.empty(y_shape, x.dtype)
    argmax = np.empty(y_shape, np.uint8 if taps <= 256 else np.uint16)
    if y.size:
        wide, even = even_out(np, x, window, -math.inf)
        core.maxpool(_shape(wide.shape, y_shape, kernel, even), wide, y, argmax)
        if not window.even:
            # of -inf alone the added padding is as large: the first value inside the image wins
            first = first_places(np, (y_shape[2], y_shape[3]), kernel, window)
            argmax = np.where(y == -math.inf, first.astype(argmax.dtype), argmax)
    return y, argmax


def maxpool_dx(dy: Array, argmax: Array, x_shape: Shape, kernel: Sizes, window: Window) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won.

    Raises ValueError where a place of `argmax` lies outside the window or the image.
    """
    dy = array("dy", dy, ndim=4)
    x_shape = shape4("x_shape", x_shape)
    # dy's lines alone say whether ceil_mode was on; places that do not fit are caught by the core
    if dy.shape[:2] != x_shape[:2]:
        raise ValueError(f"dy of shape {dy.shape} does not fit x_shape {x_shape}")
    check_pool_window(kernel, window)
    index = np.uint8 if math.prod(kernel) <= 256 else np.uint16
    argmax = integers("argmax", argmax, index, dy.shape)
    if dy.size == 0 or 0 in x_shape:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(even_shape(x_shape, window), dy.dtype)
    core.maxpool_dx(_shape(dx.shape, dy.shape, kernel, window.evened), dy, argmax, dx)
    return _inside(dx, x_shape, window)


def avgpool(
    x: Array, kernel: Sizes, window: Window, ceil_mode: bool, count_include_pad: bool
) -> Array:
    """Return the mean of every window of x."""
    x = array("x", x, ndim=4)
    y_shape = pooled("x", x.shape, kernel, window, ceil_mode)
    y = np.empty(y_shape, x.dtype)
    if y.size:
        wide, even = even_out(np, x, window)
        shape = _shape(wide.shape, y_shape, kernel, even)
        core.avgpool(shape, count_include_pad or not window.even, wide, y)
        if not (window.even or count_include_pad):
            y /= _covered(x, y_shape, kernel, window)
    return y


def avgpool_dx(
    dy: Array,
    x_shape: Shape,
    kernel: Sizes,
    window: Window,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the gradient of `avgpool` by x."""
    x_shape = shape4("x_shape", x_shape)
    y_shape = pooled("x_shape", x_shape, kernel, window, ceil_mode)
    dy = array("dy", dy, shape=y_shape)
    if dy.size == 0:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(even_shape(x_shape, window), dy.dtype)
    if not (window.even or count_include_pad):
        dy = dy / _covered(np.empty(x_shape, dy.dtype), y_shape, kernel, window)
    shape = _shape(dx.shape, y_shape, kernel, window.evened)
    core.avgpool_dx(shape, count_include_pad or not window.even, dy, dx)
    return _inside(dx, x_shape, window)


def _covered(x: Array, y_shape: Shape, kernel: Sizes, window: Window) -> Array:
    """Return which part of each window, padding included, lies on x: (1, 1, oh, ow)."""
    wide, even = even_out(np, np.ones((1, 1, *x.shape[2:]), x.dtype), window)
    part = np.empty((1, 1, *y_shape[2:]), x.dtype)
    core.avgpool(_shape(wide.shape, y_shape, kernel, even), True, wide, part)
    return part


def _shape(x_shape: tuple[int, ...], y_shape: Shape, kernel: Sizes, window: Window) -> Any:
    moves = window.stride, window.margins, window.dilation
    return core.PoolShape(x_shape, y_shape[2:], kernel, *moves)


def _inside(dx: Array, x_shape: Shape, window: Window) -> Array:
    return dx if window.even else np.ascontiguousarray(dx[inside(x_shape, window)])
