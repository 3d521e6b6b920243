"""Convolve by copying windows into columns and multiplying matrices.

Blocks of a few examples are worked on one after another, so that the columns stay in the cache.
Inside a block the examples are the innermost axis: a window's row is then one contiguous run over
columns and examples, which copies about ten times as fast as rows of a dozen values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike

from mpicnn.ops.interface import Array, Shape, Sizes
from mpicnn.ops.window import Window, overlap

COLUMN_BYTES = 4 << 20


def conv2d(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    relu: bool = False,
) -> Array:
    """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw) and add b (o,)."""
    o, c_group, *kernel = w.shape
    groups = window.groups
    y = np.empty((x.shape[0], o, *window.conv_shape(x.shape[2:], tuple(kernel))), x.dtype)
    matrix = w.reshape(groups, o // groups, c_group * kernel[0] * kernel[1])
    for examples, rows, columns in _columns(x, (kernel[0], kernel[1]), window):
        block = y[examples, :, rows].transpose(1, 2, 3, 0)
        product = (matrix @ columns).reshape(block.shape)
        if b is not None:
            product += b[:, None, None, None]
        if relu:
            np.maximum(product, 0, out=product)
        block[...] = product
    return y


def conv2d_dx(
    dy: Array,
    w: Array,
    x_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by x, given dy (n, o, oh, ow)."""
    n, c, height, width = x_shape
    o, c_group, kh, kw = w.shape
    oh, ow = dy.shape[2:]
    groups, stride, dilation = window.groups, window.stride, window.dilation
    (top, _), (left, _) = window.padding
    dx = np.empty(x_shape, dy.dtype)
    matrix = w.reshape(groups, o // groups, c_group * kh * kw).transpose(0, 2, 1)
    for examples, row_blocks in _blocks(n, oh, c * kh * kw * ow * dy.itemsize):
        block = np.zeros((c, height, width, examples.stop - examples.start), dy.dtype)
        for rows in row_blocks:
            columns = (matrix @ _packed(dy[examples, :, rows], groups)).reshape(
                c, kh, kw, rows.stop - rows.start, ow, block.shape[3]
            )
            for i in range(kh):
                first = i * dilation[0] + rows.start * stride[0]
                to_h, at_h = overlap(first, stride[0], top, height, columns.shape[3])
                for j in range(kw):
                    to_w, at_w = overlap(j * dilation[1], stride[1], left, width, ow)
                    block[:, at_h, at_w] += columns[:, i, j, to_h, to_w]
        dx[examples] = block.transpose(3, 0, 1, 2)
    return dx


def conv2d_dw(
    x: Array,
    dy: Array,
    w_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by w, given dy (n, o, oh, ow)."""
    o, c_group, kh, kw = w_shape
    groups = window.groups
    dw = np.zeros((groups, o // groups, c_group * kh * kw), x.dtype)
    for examples, rows, columns in _columns(x, (kh, kw), window):
        dw += _packed(dy[examples, :, rows], groups) @ columns.transpose(0, 2, 1)
    return dw.reshape(w_shape)


def _blocks(n: int, oh: int, row_bytes: int) -> Iterator[tuple[slice, list[slice]]]:
    """Divide n examples of oh output rows, each making `row_bytes` of columns, into blocks.

    Yields a slice of examples with its slices of rows: all rows of several examples, or, where
    one example's columns alone exceed the bound, several times some rows of that one.
    """
    rows_fit = max(1, COLUMN_BYTES // max(1, row_bytes))
    examples_fit = max(1, rows_fit // max(1, oh))
    row_blocks = [slice(r, min(r + rows_fit, oh)) for r in range(0, oh, rows_fit)]
    for first in range(0, n, examples_fit):
        yield slice(first, min(first + examples_fit, n)), row_blocks


def _columns(x: Array, kernel: Sizes, window: Window) -> Iterator[tuple[slice, slice, Array]]:
    """Yield examples, output rows and their columns (groups, c/groups * kh * kw, pixels).

    Pixels are in the order (oh, ow, n). The columns of one block are overwritten by the next.
    """
    n, c, height, width = x.shape
    (kh, kw), stride, dilation = kernel, window.stride, window.dilation
    groups, ((top, bottom), (left, right)) = window.groups, window.padding
    oh, ow = window.conv_shape(x.shape[2:], kernel)
    extent = (dilation[0] * (kh - 1) + 1, dilation[1] * (kw - 1) + 1)
    row_bytes = c * kh * kw * ow * x.itemsize
    buffer = np.empty(0, x.dtype)
    for examples, row_blocks in _blocks(n, oh, row_bytes):
        count = examples.stop - examples.start
        packed = np.zeros((c, top + height + bottom, left + width + right, count), x.dtype)
        inside = packed[:, top : top + height, left : left + width]
        inside[...] = x[examples].transpose(1, 2, 3, 0)
        for rows in row_blocks:
            band = packed[:, rows.start * stride[0] : (rows.stop - 1) * stride[0] + extent[0]]
            shape = (groups, c // groups * kh * kw, (rows.stop - rows.start) * ow * count)
            if kernel == (1, 1) and stride == (1, 1):
                yield examples, rows, band.reshape(shape)
                continue
            windows = sliding_window_view(band, extent, (1, 2))
            windows = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
            windows = windows.transpose(0, 4, 5, 1, 2, 3)
            if buffer.size < windows.size:
                buffer = np.empty(windows.size, x.dtype)
            columns = buffer[: windows.size]
            columns.reshape(windows.shape)[...] = windows
            yield examples, rows, columns.reshape(shape)


def _packed(dy: Array, groups: int) -> Array:
    """Return dy (n, o, rows, ow) as (groups, o/groups, pixels), pixels in (rows, ow, n) order."""
    n, o, rows, ow = dy.shape
    return dy.transpose(1, 2, 3, 0).reshape(groups, o // groups, rows * ow * n)


def conv2d_methods(
    x_shape: Shape, w_shape: Shape, window: Window, dtype: DTypeLike
) -> tuple[str, str, str]:
    """Return how `conv2d`, `conv2d_dx` and `conv2d_dw` compute: by columns, always."""
    y_shape = window.conv_shape(x_shape[2:], w_shape[2:])
    name = "none" if 0 in (*x_shape, *w_shape, *y_shape) else "im2col"
    return name, name, name
