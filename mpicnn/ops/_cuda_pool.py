"""Pool on a GPU: one kernel each way, which reads and writes every value once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from mpicnn.ops._cuda_arrays import Array, Pair, Shape4, blocks, cells, empty_cells, launch
from mpicnn.ops.window import pool_size

_FILE = "pool.cu"


def maxpool(
    x: Array, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool
) -> tuple[Array, Array]:
    """Return the largest value of every window of x (n, c, h, w), and where in the window it is.

    The place is i * kw + j (uint8, or uint16 for windows of more than 256 values); the first of
    equal values wins and padding never does. A NaN in the window makes the value NaN.
    """
    y_shape = _pooled(x.shape, kernel, stride, padding, ceil_mode)
    index = _index(kernel)
    y, argmax = empty_cells(y_shape, x.dtype), empty_cells(y_shape, index)
    if y.size:
        window = *x.shape, *y_shape[2:], *kernel, *stride, *padding
        _launch("maxpool", y, cells(x), y, argmax, *window)
    return y, argmax


def maxpool_dx(
    dy: Array, argmax: Array, x_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair
) -> Array:
    """Return the gradient of `maxpool` by x: dy goes to the place that won."""
    _check_window(kernel, stride, padding)
    if dy.shape != argmax.shape or dy.shape[:2] != x_shape[:2] or argmax.dtype != _index(kernel):
        raise ValueError(
            f"dy {dy.shape} and argmax {argmax.shape} of {argmax.dtype} do not fit x {x_shape}"
        )
    dx = empty_cells(x_shape, dy.dtype)
    if dx.size:
        window = *x_shape, *dy.shape[2:], *kernel, *stride, *padding
        _launch("maxpool_dx", dx, cells(dy), cells(argmax), dx, *window)
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
    y_shape = _pooled(x.shape, kernel, stride, padding, ceil_mode)
    y = empty_cells(y_shape, x.dtype)
    if y.size:
        window = *x.shape, *y_shape[2:], *kernel, *stride, *padding
        _launch("avgpool", y, cells(x), y, *window, count_include_pad)
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
    y_shape = _pooled(x_shape, kernel, stride, padding, ceil_mode)
    if dy.shape != y_shape:
        raise ValueError(f"dy must have shape {y_shape}, not {dy.shape}")
    dx = empty_cells(x_shape, dy.dtype)
    if dx.size:
        window = *x_shape, *y_shape[2:], *kernel, *stride, *padding
        _launch("avgpool_dx", dx, cells(dy), dx, *window, count_include_pad)
    return dx


def _launch(name: str, out: Array, *args: Array | int) -> None:
    """Start a kernel that takes whole lines of `out`."""
    n, c, height, width = out.shape
    warps = min(8, -(-width * c // 128))
    launch(name, _FILE, out.dtype, blocks(n * height, 1), 32 * warps, *args)


def _index(kernel: Pair) -> DTypeLike:
    return np.uint8 if math.prod(kernel) <= 256 else np.uint16


def _check_window(kernel: Pair, stride: Pair, padding: Pair) -> None:
    """Raise ValueError unless every position of the window reaches into the image."""
    if min(*kernel, *stride) < 1 or min(padding) < 0 or math.prod(kernel) > 1 << 16:
        raise ValueError(f"kernel {kernel}, stride {stride} and padding {padding} are no window")
    if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
        raise ValueError(f"padding {padding} must be smaller than the kernel {kernel}")


def _pooled(x_shape: Shape4, kernel: Pair, stride: Pair, padding: Pair, ceil_mode: bool) -> Shape4:
    """Return the shape of the pooled array."""
    _check_window(kernel, stride, padding)
    n, c, *image = x_shape
    oh, ow = (
        pool_size(*axis, ceil_mode) for axis in zip(image, kernel, stride, padding, strict=True)
    )
    if min(oh, ow) < 0 or (0 in image and 0 not in (oh, ow)):
        raise ValueError(f"the window {kernel} does not fit an image of {tuple(image)}")
    return n, c, oh, ow
