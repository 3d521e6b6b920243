"""Check arguments and allocate results for the compiled convolution and fully connected kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mpicnn.ops._native_check import array, conv_y_shape, wide_shape, widened
from mpicnn.ops._native_core import HAS_BLAS, core
from mpicnn.ops.interface import Array, Shape
from mpicnn.ops.window import Window, inside


def conv2d(
    x: Array,
    w: Array,
    b: Array | None,
    window: Window,
    relu: bool = False,
) -> Array:
    """Cross-correlate x (n, c, h, w) with w (o, c/groups, kh, kw) and add b (o,)."""
    x = array("x", x, ndim=4)
    x, window = widened(np, x, window)
    w = array("w", w, like=x, ndim=4)
    b = b if b is None else array("b", b, like=x, shape=w.shape[:1])
    y_shape, geometry = _geometry("x", x.shape, w.shape, window)
    if geometry is None:
        return _sums_of_nothing(y_shape, x.dtype, b, relu)
    y = np.empty(y_shape, x.dtype)
    core.conv2d(geometry, x, w, b, relu, y)
    return y


def conv2d_dx(
    dy: Array,
    w: Array,
    x_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by x, given dy (n, o, oh, ow)."""
    if not window.even:
        wide = conv2d_dx(dy, w, wide_shape(x_shape, window), window.evened)
        return np.ascontiguousarray(wide[inside(x_shape, window)])
    w = array("w", w, ndim=4)
    y_shape, geometry = _geometry("x_shape", x_shape, w.shape, window)
    dy = array("dy", dy, like=w, shape=y_shape)
    if geometry is None:
        return np.zeros(x_shape, dy.dtype)
    dx = np.empty(x_shape, dy.dtype)
    core.conv2d_dx(geometry, dy, w, dx)
    return dx


def conv2d_dw(
    x: Array,
    dy: Array,
    w_shape: Shape,
    window: Window,
) -> Array:
    """Return the gradient of `conv2d` by w, given dy (n, o, oh, ow)."""
    x = array("x", x, ndim=4)
    x, window = widened(np, x, window)
    y_shape, geometry = _geometry("w_shape", x.shape, w_shape, window)
    dy = array("dy", dy, like=x, shape=y_shape)
    if geometry is None:
        return np.zeros(w_shape, x.dtype)
    dw = np.empty(w_shape, x.dtype)
    core.conv2d_dw(geometry, x, dy, dw)
    return dw


def conv2d_methods(
    x_shape: Shape,
    w_shape: Shape,
    window: Window,
    dtype: DTypeLike,
) -> tuple[str, str, str]:
    """Return how `conv2d`, `conv2d_dx` and `conv2d_dw` compute for these shapes.

    "im2col" makes products of columns, "lines" adds up lines; "winograd 4x4,5x5" is Winograd's
    method on tiles of 4x4 outputs for kernels of 5x5; "numpy" stands for all where no BLAS is
    installed, "none" where there is nothing to multiply; "depthwise" has no sum over channels;
    " bf16" behind a name means rounded operands. The same shapes and dtype give the same methods
    everywhere, until `set_convolution` forbids some.
    """
    if not HAS_BLAS:
        return "numpy", "numpy", "numpy"
    wide = wide_shape(x_shape, window)
    _, geometry = _geometry("x_shape", wide, w_shape, window.evened)
    if geometry is None:
        return "none", "none", "none"
    forward, dx, dw = core.conv_methods(geometry, np.dtype(dtype) == np.float32)
    return forward, dx, dw


def linear(x: Array, w: Array, b: Array | None, relu: bool = False) -> Array:
    """Return y = x w^T + b for x (n, c), w (o, c) and b (o,)."""
    x = array("x", x, ndim=2)
    w = array("w", w, like=x, ndim=2)
    w = array("w", w, shape=(w.shape[0], x.shape[1]))
    b = b if b is None else array("b", b, like=x, shape=w.shape[:1])
    y_shape = x.shape[0], w.shape[0]
    if x.size == 0 or w.size == 0:
        return _sums_of_nothing(y_shape, x.dtype, b, relu)
    y = np.empty(y_shape, x.dtype)
    core.linear(x, w, b, relu, y)
    return y


def linear_dx(dy: Array, w: Array) -> Array:
    """Return the gradient of `linear` by x, given dy (n, o)."""
    dy = array("dy", dy, ndim=2)
    w = array("w", w, like=dy, ndim=2)
    w = array("w", w, shape=(dy.shape[1], w.shape[1]))
    if dy.size == 0 or w.size == 0:
        return np.zeros((dy.shape[0], w.shape[1]), dy.dtype)
    dx = np.empty((dy.shape[0], w.shape[1]), dy.dtype)
    core.linear_dx(dy, w, dx)
    return dx


def linear_dw(x: Array, dy: Array, dw: Array | None = None) -> Array:
    """Return the gradient of `linear` by w, given dy (n, o); added to `dw`, in place, if given."""
    x = array("x", x, ndim=2)
    dy = array("dy", dy, like=x, ndim=2)
    dy = array("dy", dy, shape=(x.shape[0], dy.shape[1]))
    shape = dy.shape[1], x.shape[1]
    add = dw is not None
    if dw is None:
        dw = np.empty(shape, x.dtype)
    elif array("dw", dw, like=x, shape=shape) is not dw or not dw.flags.writeable:
        raise ValueError("dw must be writeable and in C order")
    if dy.size and x.size:
        core.linear_dw(x, dy, dw, add)
    elif not add:
        dw[...] = 0
    return dw


def _sums_of_nothing(
    shape: tuple[int, ...], dtype: DTypeLike, b: Array | None, relu: bool
) -> Array:
    """Return what is left where there is nothing to multiply: of every output its bias."""
    y = np.zeros(shape, dtype)
    if b is not None:
        y += b.reshape(-1, *(1,) * (len(shape) - 2))
    return np.maximum(y, 0) if relu else y


def _geometry(
    name: str,
    x_shape: Shape,
    w_shape: Shape,
    window: Window,
) -> tuple[Shape, Any]:
    """Return y's shape and the core's description, or None in its place where nothing is to be
    multiplied.

    `name` is the argument that is blamed where shapes do not fit.
    """
    y_shape = conv_y_shape(name, x_shape, w_shape, window)
    if 0 in (*x_shape, *w_shape, *y_shape):
        return y_shape, None
    return y_shape, core.ConvShape(
        x_shape, w_shape, window.stride, window.margins, window.dilation, window.groups
    )
