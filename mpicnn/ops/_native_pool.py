"""Check arguments and allocate results for the compiled pooling kernels."""

from __future__ import annotations

import math

import numpy as np

from mpicnn.ops._native_check import Array, Pair, Shape4, array, integers, pair, shape4
from mpicnn.ops._native_core import core
from mpicnn.ops.window import pool_size


def maxpool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> tuple[Array, Array]:
    """Return the largest value of every window of x (n, c, h, w), and where in the window it is.

    The place is i * kw + j (uint8, or uint16 for windows of more than 256 values); the first of
    equal values wins and padding never does. A NaN in the window makes the value NaN.
    """
    x = array("x", x, ndim=4)
    y_shape = _pooled("x", x.shape, kernel, stride, padding, ceil_mode)
    taps = math.prod(kernel)
    if taps > 1 << 16:
        raise ValueError(f"kernel must not have more than 65536 places: {kernel}")
    y = np.empty(y_shape, x.dtype)
    argmax = np.empty(y_shape, np.uint8 if taps <= 256 else np.uint16)
    if y.size:
        core.maxpool(core.PoolShape(x.shape, y_shape[2:], kernel, stride, padding), x, y, argmax)
    return y, argmax


def maxpool_dx(
    dy: Array, argmax: Array, x_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair
) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won.

    Raises ValueError where a place of `argmax` lies outside the window or the image.
    """
    dy = array("dy", dy, ndim=4)
    x_shape = shape4("x_shape", x_shape)
    # dy's lines alone say whether ceil_mode was on; places that do not fit are caught by the core
    if dy.shape[:2] != x_shape[:2]:
        raise ValueError(f"dy of shape {dy.shape} does not fit x_shape {x_shape}")
    kernel, stride, padding = _window(kernel, stride, padding)
    index = np.uint8 if math.prod(kernel) <= 256 else np.uint16
    argmax = integers("argmax", argmax, index, dy.shape)
    if dy.size == 0 or 0 in x_shape:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(x_shape, dy.dtype)
    core.maxpool_dx(core.PoolShape(x_shape, dy.shape[2:], kernel, stride, padding), dy, argmax, dx)
    return dx


def avgpool(
    x: Array,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the mean of every window of x (n, c, h, w).

    The divisor is PyTorch's: with `count_include_pad` the part of the window inside the padded
    image, otherwise the part inside the image.
    """
    x = array("x", x, ndim=4)
    y_shape = _pooled("x", x.shape, kernel, stride, padding, ceil_mode)
    y = np.empty(y_shape, x.dtype)
    if y.size:
        shape = core.PoolShape(x.shape, y_shape[2:], kernel, stride, padding)
        core.avgpool(shape, count_include_pad, x, y)
    return y


def avgpool_dx(
    dy: Array,
    x_shape: Shape4,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the gradient of `avgpool` by x."""
    x_shape = shape4("x_shape", x_shape)
    y_shape = _pooled("x_shape", x_shape, kernel, stride, padding, ceil_mode)
    dy = array("dy", dy, shape=y_shape)
    if dy.size == 0:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(x_shape, dy.dtype)
    shape = core.PoolShape(x_shape, dy.shape[2:], kernel, stride, padding)
    core.avgpool_dx(shape, count_include_pad, dy, dx)
    return dx


def _window(kernel: Pair, stride: Pair, padding: Pair) -> tuple[Pair, Pair, Pair]:
    """Check a pooling window: every one of its positions must reach into the image."""
    kernel, stride = pair("kernel", kernel, 1), pair("stride", stride, 1)
    padding = pair("padding", padding, 0)
    if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
        raise ValueError(f"padding {padding} must be smaller than the kernel {kernel}")
    return kernel, stride, padding


def _pooled(
    name: str, x_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> Shape4:
    """Return the shape of the pooled array; `name` is blamed where the window does not fit."""
    n, c, *image = shape4(name, x_shape)
    window = _window(kernel, stride, padding)
    oh, ow = (pool_size(*axis, ceil_mode) for axis in zip(image, *window, strict=True))
    if min(oh, ow) < 0 or (0 in image and 0 not in (oh, ow)):
        raise ValueError(f"{name}: the window {kernel} does not fit an image of {tuple(image)}")
    return n, c, oh, ow
