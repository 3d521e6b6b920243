"""Pool by looping over the taps of the window, each a strided view of the whole input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from mpicnn.ops.interface import Array, Shape, Sizes
from mpicnn.ops.window import Window, first_places, overlap


def maxpool(x: Array, kernel: Sizes, window: Window, ceil_mode: bool) -> tuple[Array, Array]:
    """Return the largest value of every window of x (n, c, h, w), and where in the window it is."""
    oh, ow = window.pool_shape(x.shape[2:], kernel, ceil_mode)
    y = np.full((*x.shape[:2], oh, ow), -np.inf, x.dtype)
    index = np.uint8 if kernel[0] * kernel[1] <= 256 else np.uint16
    argmax = np.empty(y.shape, index)
    # where all values are -inf no comparison succeeds: the first one inside the image wins
    argmax[...] = first_places(np, (oh, ow), kernel, window)
    for place, to, at in _taps(x.shape, (oh, ow), kernel, window):
        value, best, won = x[at], y[to], argmax[to]
        # ones or zeros in every bit: bitwise arithmetic is several times faster than where=
        better = np.negative((value > best).astype(index))
        won ^= (won ^ index(place)) & better
        np.maximum(value, best, out=best)
    return y, argmax


def maxpool_dx(dy: Array, argmax: Array, x_shape: Shape, kernel: Sizes, window: Window) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won."""
    dx = np.zeros(x_shape, dy.dtype)
    out = (dy.shape[2], dy.shape[3])
    for place, to, at in _taps(x_shape, out, kernel, window):
        dx[at] += np.where(argmax[to] == place, dy[to], dy.dtype.type(0))
    return dx


def avgpool(
    x: Array,
    kernel: Sizes,
    window: Window,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the mean of every window of x (n, c, h, w)."""
    out = window.pool_shape(x.shape[2:], kernel, ceil_mode)
    y = np.zeros((*x.shape[:2], *out), x.dtype)
    for _, to, at in _taps(x.shape, out, kernel, window):
        y[to] += x[at]
    y /= _divisor(x.shape, out, kernel, window, count_include_pad).astype(x.dtype)
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
    dx = np.zeros(x_shape, dy.dtype)
    out = (dy.shape[2], dy.shape[3])
    share = dy / _divisor(x_shape, out, kernel, window, count_include_pad).astype(dy.dtype)
    for _, to, at in _taps(x_shape, out, kernel, window):
        dx[at] += share[to]
    return dx


def _taps(
    x_shape: tuple[int, ...], out: tuple[int, ...], kernel: Sizes, window: Window
) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield every place of the window, the outputs it serves and the inputs it reads."""
    (down, along), (top, left) = window.dilation, (front for front, _ in window.padding)
    for i in range(kernel[0]):
        to_h, at_h = overlap(i * down, window.stride[0], top, x_shape[2], out[0])
        for j in range(kernel[1]):
            to_w, at_w = overlap(j * along, window.stride[1], left, x_shape[3], out[1])
            yield i * kernel[1] + j, (..., to_h, to_w), (..., at_h, at_w)


def _divisor(
    x_shape: tuple[int, ...], out: tuple[int, ...], kernel: Sizes, window: Window, padded: bool
) -> Array:
    """Return the number of values that each window's mean counts, (oh, ow)."""
    counts = []
    axes = zip(x_shape[2:], out, kernel, window.stride, window.padding, strict=True)
    for size, outputs, k, s, (front, behind) in axes:
        start = np.arange(outputs) * s - front
        first, stop = (-front, size + behind) if padded else (0, size)
        counts.append(np.minimum(start + k, stop) - np.maximum(start, first))
    return counts[0][:, None] * counts[1]
