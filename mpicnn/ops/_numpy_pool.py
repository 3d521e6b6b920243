"""Pool by looping over the taps of the window, each a strided view of the whole input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.ops.window import overlap, pool_size

Array = NDArray[Any]
Pair = tuple[int, int]
Shape4 = tuple[int, int, int, int]


def maxpool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> tuple[Array, Array]:
    """Return the largest value of every window of x (n, c, h, w), and where in the window it is.

    The place is i * kw + j (uint8, or uint16 for windows of more than 256 values); the first of
    equal values wins and padding never does. A NaN in the window makes the value NaN; its place
    is then any one inside the image.
    """
    oh, ow = _out_size(x.shape, kernel, stride, padding, ceil_mode)
    y = np.full((*x.shape[:2], oh, ow), -np.inf, x.dtype)
    # where all values are -inf no comparison succeeds: the first one inside the image wins
    first_h = np.maximum(0, padding[0] - np.arange(oh) * stride[0])
    first_w = np.maximum(0, padding[1] - np.arange(ow) * stride[1])
    index = np.uint8 if kernel[0] * kernel[1] <= 256 else np.uint16
    argmax = np.empty(y.shape, index)
    argmax[...] = first_h[:, None] * kernel[1] + first_w
    for place, to, at in _taps(x.shape, (oh, ow), kernel, stride, padding):
        value, best, won = x[at], y[to], argmax[to]
        # ones or zeros in every bit: bitwise arithmetic is several times faster than where=
        better = np.negative((value > best).astype(index))
        won ^= (won ^ index(place)) & better
        np.maximum(value, best, out=best)
    return y, argmax


def maxpool_dx(
    dy: Array, argmax: Array, x_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair
) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won."""
    dx = np.zeros(x_shape, dy.dtype)
    out = (dy.shape[2], dy.shape[3])
    for place, to, at in _taps(x_shape, out, kernel, stride, padding):
        dx[at] += np.where(argmax[to] == place, dy[to], dy.dtype.type(0))
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
    out = _out_size(x.shape, kernel, stride, padding, ceil_mode)
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    for _, to, at in _taps(x.shape, out, kernel, stride, padding):
        y[to] += x[at]
    y /= _divisor(x.shape, out, kernel, stride, padding, count_include_pad).astype(x.dtype)
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
    dx = np.zeros(x_shape, dy.dtype)
    out = (dy.shape[2], dy.shape[3])
    share = dy / _divisor(x_shape, out, kernel, stride, padding, count_include_pad).astype(dy.dtype)
    for _, to, at in _taps(x_shape, out, kernel, stride, padding):
        dx[at] += share[to]
    return dx


def _out_size(
    x_shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> Pair:
    height, width = (
        pool_size(*axis, ceil_mode)
        for axis in zip(x_shape[2:], kernel, stride, padding, strict=True)
    )
    return height, width


def _taps(
    x_shape: tuple[int, ...], out: Pair, kernel: Pair, stride: Pair, padding: Pair
) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield every place of the window, the outputs it serves and the inputs it reads."""
    for i in range(kernel[0]):
        to_h, at_h = overlap(i, stride[0], padding[0], x_shape[2], out[0])
        for j in range(kernel[1]):
            to_w, at_w = overlap(j, stride[1], padding[1], x_shape[3], out[1])
            yield i * kernel[1] + j, (..., to_h, to_w), (..., at_h, at_w)


def _divisor(
    x_shape: tuple[int, ...], out: Pair, kernel: Pair, stride: Pair, padding: Pair, padded: bool
) -> Array:
    """Return the number of values that each window's mean counts, (oh, ow)."""
    counts = []
    for size, outputs, k, s, p in zip(x_shape[2:], out, kernel, stride, padding, strict=True):
        start = np.arange(outputs) * s - p
        margin = p if padded else 0
        counts.append(np.minimum(start + k, size + margin) - np.maximum(start, -margin))
    return counts[0][:, None] * counts[1]
