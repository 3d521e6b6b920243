"""Pool on a GPU: one kernel each way, which reads and writes every value once.

The kernels know one padding for both sides of an axis: the surplus of one side becomes part of the
image.
"""

from __future__ import annotations

import math

import cupy
import numpy as np
from numpy.typing import DTypeLike

from mpicnn.ops._cuda_arrays import Array, blocks, cells, empty_cells, launch
from mpicnn.ops._native_check import check_pool_window, pooled
from mpicnn.ops.interface import Shape, Sizes
from mpicnn.ops.window import Window, even_out, even_shape, first_places, inside

_FILE = "pool.cu"


def maxpool(x: Array, kernel: Sizes, window: Window, ceil_mode: bool) -> tuple[Array, Array]:
    """Return the largest value of every window of x, and where in the window it is."""
    y_shape = _pooled(x.shape, kernel, window, ceil_mode)
    index = _index(kernel)
    y, argmax = empty_cells(y_shape, x.dtype), empty_cells(y_shape, index)
    if y.size:
        wide, even = even_out(cupy, x, window, -math.inf)
        _launch("maxpool", y, cells(wide), y, argmax, *_sizes(wide.shape, y_shape, kernel, even))
        if not window.even:
            # of -inf alone the added padding is as large: the first value inside the image wins
            first = first_places(cupy, (y_shape[2], y_shape[3]), kernel, window)
            argmax = cells(cupy.where(y == -math.inf, first.astype(index), argmax))
    return y, argmax


def maxpool_dx(dy: Array, argmax: Array, x_shape: Shape, kernel: Sizes, window: Window) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won."""
    _check(kernel, window)
    if dy.shape != argmax.shape or dy.shape[:2] != x_shape[:2] or argmax.dtype != _index(kernel):
        raise ValueError(
            f"dy {dy.shape} and argmax {argmax.shape} of {argmax.dtype} do not fit x {x_shape}"
        )
    dx = empty_cells(even_shape(x_shape, window), dy.dtype)
    if dx.size:
        sizes = _sizes(dx.shape, dy.shape, kernel, window.evened)
        _launch("maxpool_dx", dx, cells(dy), cells(argmax), dx, *sizes)
    return _inside(dx, x_shape, window)


def avgpool(
    x: Array, kernel: Sizes, window: Window, ceil_mode: bool, count_include_pad: bool
) -> Array:
    """Return the mean of every window of x."""
    y_shape = _pooled(x.shape, kernel, window, ceil_mode)
    y = _mean(x, y_shape, kernel, window, count_include_pad or not window.even)
    return y if window.even or count_include_pad else y / _covered(x, y_shape, kernel, window)


def avgpool_dx(
    dy: Array,
    x_shape: Shape,
    kernel: Sizes,
    window: Window,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the gradient of `avgpool` by x."""
    y_shape = _pooled(x_shape, kernel, window, ceil_mode)
    if dy.shape != y_shape:
        raise ValueError(f"dy must have shape {y_shape}, not {dy.shape}")
    dx = empty_cells(even_shape(x_shape, window), dy.dtype)
    if not (window.even or count_include_pad):
        dy = dy / _covered(dx, y_shape, kernel, window, x_shape)
    if dx.size:
        sizes = _sizes(dx.shape, y_shape, kernel, window.evened)
        _launch("avgpool_dx", dx, cells(dy), dx, *sizes, count_include_pad or not window.even)
    return _inside(dx, x_shape, window)


def _mean(x: Array, y_shape: Shape, kernel: Sizes, window: Window, padded: bool) -> Array:
    y = empty_cells(y_shape, x.dtype)
    if y.size:
        x, window = even_out(cupy, x, window)
        _launch("avgpool", y, cells(x), y, *_sizes(x.shape, y_shape, kernel, window), padded)
    return y


def _covered(
    x: Array, y_shape: Shape, kernel: Sizes, window: Window, x_shape: Shape | None = None
) -> Array:
    """Return which part of each window, padding included, lies on the image: (1, 1, oh, ow)."""
    ones = cupy.ones((1, 1, *(x_shape or x.shape)[2:]), x.dtype)
    return _mean(ones, (1, 1, *y_shape[2:]), kernel, window, True)


def _sizes(
    x_shape: tuple[int, ...], y_shape: tuple[int, ...], kernel: Sizes, window: Window
) -> tuple[int, ...]:
    """Return the sizes in the order of the kernels' arguments."""
    return *x_shape, *y_shape[2:], *kernel, *window.stride, *window.margins, *window.dilation


def _inside(dx: Array, x_shape: Shape, window: Window) -> Array:
    return dx if window.even else cells(dx[inside(x_shape, window)])


def _launch(name: str, out: Array, *args: Array | int) -> None:
    """Start a kernel that takes whole lines of `out`."""
    n, c, height, width = out.shape
    warps = min(8, -(-width * c // 128))
    launch(name, _FILE, out.dtype, blocks(n * height, 1), 32 * warps, *args)


def _index(kernel: Sizes) -> DTypeLike:
    return np.uint8 if math.prod(kernel) <= 256 else np.uint16


def _check(kernel: Sizes, window: Window) -> None:
    """Raise ValueError unless every position of the window reaches into the image."""
    check_pool_window(kernel, window)
    if math.prod(kernel) > 1 << 16:
        raise ValueError(f"kernel must not have more than 65536 places: {kernel}")


def _pooled(x_shape: Shape, kernel: Sizes, window: Window, ceil_mode: bool) -> Shape:
    """Return the shape of the pooled array."""
    _check(kernel, window)
    return pooled("x", x_shape, kernel, window, ceil_mode)
