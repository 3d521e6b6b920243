"""Compute on NumPy arrays with compiled kernels: the same functions as `mpicnn.ops.numpy`.

Arrays are float32 or float64, contiguous or not (others are copied first); a result has the dtype
of its first array. The same call returns the same bits, on any number of threads. Wrong shapes and
dtypes raise a ValueError that names the argument. Importing raises ImportError where the kernels
are not built.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpicnn import rng
from mpicnn.ops import numpy as plain
from mpicnn.ops._native_check import (
    Array,
    Pair,
    Shape4,
    array,
    channels_array,
    integers,
    pair,
    shape4,
)
from mpicnn.ops._native_core import HAS_BLAS, core
from mpicnn.ops.numpy import topk_correct
from mpicnn.ops.window import pool_size

if HAS_BLAS:
    from mpicnn.ops._native_contract import (
        conv2d,
        conv2d_dw,
        conv2d_dx,
        linear,
        linear_dw,
        linear_dx,
    )
else:
    from mpicnn.ops.numpy import conv2d, conv2d_dw, conv2d_dx, linear, linear_dw, linear_dx

__all__ = [
    "NAME",
    "avgpool",
    "avgpool_dx",
    "bias_grad",
    "channel_sums",
    "conv2d",
    "conv2d_dw",
    "conv2d_dx",
    "dropout",
    "linear",
    "linear_dw",
    "linear_dx",
    "lrn",
    "lrn_dx",
    "maxpool",
    "maxpool_dx",
    "mul",
    "relu",
    "relu_dx",
    "scale_shift",
    "set_threads",
    "sgd",
    "softmax_xent",
    "topk_correct",
    "xp",
]

NAME = "native"
xp = np


def set_threads(count: int) -> None:
    """Let the kernels use `count` threads from now on (1 at first)."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    core.set_threads(count)


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


def lrn(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Return y = x * scale**-beta and scale = k + alpha / size * (sum of x**2 over a window).

    The window of channel c is c - size // 2 … c + (size - 1) // 2, cut off at the ends
    (Krizhevsky et al. 2012, section 3.3, with PyTorch's alpha and placement).
    """
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


def relu(x: Array) -> Array:
    """Return the larger of x and 0; NaN stays NaN."""
    x = array("x", x)
    y = np.empty_like(x)
    core.relu(x, y)
    return y


def relu_dx(dy: Array, y: Array) -> Array:
    """Return the gradient of `relu`: dy where y is positive, 0 elsewhere."""
    dy = array("dy", dy)
    y = array("y", y, like=dy, shape=dy.shape)
    dx = np.empty_like(dy)
    core.relu_dx(dy, y, dx)
    return dx


def mul(x: Array, mask: Array) -> Array:
    """Return x * mask."""
    x = array("x", x)
    mask = array("mask", mask, like=x, shape=x.shape)
    y = np.empty_like(x)
    core.mul(x, mask, y)
    return y


def bias_grad(dy: Array) -> Array:
    """Return the gradient of `conv2d` or `linear` by b, given dy (n, o) or (n, o, h, w)."""
    return channel_sums(array("dy", dy))


def channel_sums(a: Array, b: Array | None = None) -> Array:
    """Return the sum of a, or of a * b, over all axes but 1, added in float64."""
    cells = channels_array("a", a)
    sums = np.empty(cells.shape[1], cells.dtype)
    if b is None:
        core.channel_sums(cells, sums)
    else:
        b = array("b", b, like=a, shape=a.shape).reshape(cells.shape)
        core.channel_sums(cells, b, sums)
    return sums


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    """Return x * scale + shift with one scale and one shift per channel (axis 1)."""
    cells = channels_array("x", x)
    scale = array("scale", scale, like=cells, shape=cells.shape[1:2])
    shift = array("shift", shift, like=cells, shape=cells.shape[1:2])
    y = np.empty_like(cells)
    core.scale_shift(cells, scale, shift, y)
    return y.reshape(x.shape)


def dropout(
    x: Array,
    rate: float,
    seed: int,
    layer: int,
    step: int,
    positions: NDArray[np.int64],
    first: int,
) -> tuple[Array, Array]:
    """Return x * mask and the mask, which is 0 with probability `rate`, else 1 / (1 - rate).

    x is (n, features…); `positions` are the places of its rows in the global batch and `first` is
    the global index of its first feature. The mask is that of `mpicnn.rng.dropout_mask`.
    """
    x = array("x", x)
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    positions = integers("positions", positions, np.int64, x.shape[:1])
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in 0 … 1, without 1, not {rate}")
    if first < 0:
        raise ValueError(f"first must not be negative: {first}")
    y, mask = np.empty_like(rows), np.empty_like(rows)
    key, threshold = rng.key(seed, "dropout"), int(rate * 2**32)
    word = rng.LOW
    core.dropout(
        rows, positions, first, step & word, layer & word, key, threshold, 1 / (1 - rate), y, mask
    )
    return y.reshape(x.shape), mask.reshape(x.shape)


def softmax_xent(logits: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the cross-entropy of every example (n,) and its gradient by the logits (n, classes).

    The gradient, softmax - onehot, is not divided by anything. Raises ValueError for a label
    outside 0 … classes - 1.
    """
    logits = array("logits", logits, ndim=2)
    labels = integers("labels", labels, np.int64, logits.shape[:1])
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels must lie in 0 … {logits.shape[1] - 1}")
    losses, dlogits = np.empty(len(logits), logits.dtype), np.empty_like(logits)
    core.softmax_xent(logits, labels, losses, dlogits)
    return losses, dlogits


def sgd(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place, v <- momentum * v - rate * (g + decay * w), then w <- w + v (OWT)."""
    g = array("g", g)
    for name, value in (("w", w), ("v", v)):
        array(name, value, like=g, shape=g.shape)
        if not value.flags.writeable:
            raise ValueError(f"{name} must be writeable")
    if w.flags.carray and v.flags.carray:
        core.sgd(w, v, g, rate, momentum, decay)
    else:
        plain.sgd(w, v, g, rate, momentum, decay)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")


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
