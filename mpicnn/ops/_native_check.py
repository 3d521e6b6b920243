"""Check what is handed to compiled kernels, which see bare memory: every ValueError names its
argument."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.ops.interface import Array, Pair, Shape, Sizes
from mpicnn.ops.window import Window, even_out, even_shape

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def array(
    name: str,
    value: Array,
    *,
    like: Array | None = None,
    ndim: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Array:
    """Return `value` in C order, copied only where it is not already.

    Raises ValueError unless it is an array of float32 or float64 (of the dtype of `like`), with
    `ndim` axes, of this `shape`.
    """
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, not {type(value).__name__}")
    if like is None and value.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32 or float64, not {value.dtype}")
    if like is not None and value.dtype != like.dtype:
        raise ValueError(f"{name} must be {like.dtype}, not {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, not shape {value.shape}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {value.shape}")
    if value.flags.c_contiguous and value.flags.aligned:
        return value
    return np.array(value, order="C")


def channels_array(name: str, value: Array) -> Array:
    """Return `value` (n, c, …) in C order as (n, c, inner); see `array` for what is raised."""
    value = array(name, value)
    if value.ndim < 2:
        raise ValueError(f"{name} must have at least 2 axes, not shape {value.shape}")
    return value.reshape(*value.shape[:2], math.prod(value.shape[2:]))


def integers(
    name: str, value: NDArray[np.integer[Any]], dtype: type[np.integer[Any]], shape: tuple[int, ...]
) -> Array:
    """Return an integer array of this shape in C order as `dtype`; raises ValueError otherwise."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
        raise ValueError(f"{name} must be an array of integers")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {value.shape}")
    return np.require(value, dtype, ["C", "A"])


def pair(name: str, value: tuple[int, ...], least: int) -> Pair:
    """Return two integers of at least `least`; raises ValueError otherwise."""
    first, second = _integers(name, value, 2, least)
    return first, second


def check_window(window: Window) -> None:
    """Raise ValueError unless a window is one over images, with sizes that make sense."""
    pair("stride", window.stride, 1)
    pair("dilation", window.dilation, 1)
    if len(window.padding) != 2:
        raise ValueError(f"padding must be for 2 axes, not {window.padding}")
    for sides in window.padding:
        pair("padding", sides, 0)


def widened(xp: Any, x: Array, window: Window) -> tuple[Array, Window]:
    """Return `even_out` of x, padded with zeros; raises ValueError for a window without sense."""
    if not window.even:
        check_window(window)
    return even_out(xp, x, window)


def wide_shape(x_shape: tuple[int, ...], window: Window) -> Shape:
    """Return the shape of `widened`'s array; raises ValueError for what makes none."""
    x_shape = shape4("x_shape", x_shape)
    check_window(window)
    return shape4("x_shape", even_shape(x_shape, window))


def check_pool_window(kernel: Sizes, window: Window) -> None:
    """Raise ValueError unless every position of a pooling window reaches into the image."""
    pair("kernel", kernel, 1)
    check_window(window)
    if any(max(sides) >= k for sides, k in zip(window.padding, kernel, strict=True)):
        raise ValueError(f"padding {window.padding} must be smaller than the kernel {kernel}")


def pooled(name: str, x_shape: Shape, kernel: Sizes, window: Window, ceil_mode: bool) -> Shape:
    """Return the shape of a pooled array; `name` is blamed where the window does not fit."""
    n, c, *image = shape4(name, x_shape)
    check_pool_window(kernel, window)
    oh, ow = window.pool_shape(tuple(image), kernel, ceil_mode)
    if min(oh, ow) < 0 or (0 in image and 0 not in (oh, ow)):
        raise ValueError(f"{name}: the window {kernel} does not fit an image of {tuple(image)}")
    if 0 not in image and not window.touches(tuple(image), kernel, (oh, ow)):
        raise ValueError(f"{name}: a window {kernel} takes nothing of an image of {tuple(image)}")
    return n, c, oh, ow


def shape4(name: str, value: tuple[int, ...]) -> Shape:
    """Return a shape of four axes; raises ValueError for another number or a negative length."""
    a, b, c, d = _integers(name, value, 4, 0)
    return a, b, c, d


def conv_y_shape(
    name: str,
    x_shape: Shape,
    w_shape: Shape,
    window: Window,
) -> Shape:
    """Return the shape of a convolution's result; raises ValueError where arguments do not fit.

    `name` is the argument that is blamed.
    """
    n, c, *image = shape4(name, x_shape)
    o, c_group, *kernel = shape4("w_shape" if name == "w_shape" else "w", w_shape)
    check_window(window)
    groups = window.groups
    if groups < 1 or o % groups or c_group * groups != c:
        raise ValueError(
            f"groups={groups} does not fit x of shape {tuple(x_shape)} and w of {tuple(w_shape)}"
        )
    if min(kernel) < 1:
        raise ValueError(f"the kernel of w must not be empty: shape {tuple(w_shape)}")
    oh, ow = window.conv_shape(tuple(image), tuple(kernel))
    if min(oh, ow) < 0:
        raise ValueError(f"{name}: the kernel {tuple(kernel)} exceeds the padded image {image}")
    return n, o, oh, ow


def _integers(name: str, value: tuple[int, ...], count: int, least: int) -> list[int]:
    try:
        found = [operator.index(number) for number in value]
    except TypeError:
        found = []
    if len(found) != count or min(found) < least:
        raise ValueError(f"{name} must be {count} integers of at least {least}, not {value}")
    return found
