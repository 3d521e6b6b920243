"""Scale, add up and normalise channels on a GPU."""

from __future__ import annotations

import cupy
import numpy as np

from mpicnn.ops._cuda_arrays import THREADS, Array, blocks, cells, cells_like, empty_cells, launch

# As in lrn.cu: values that a block takes at a time, and how many more it may share.
_LRN_TILE = 1024
_LRN_MARGIN = 5000
# As in reduce.cu: the rows that a thread adds up before it goes on in double.
_RUN = 16


def plane_sums(a: Array, b: Array | None = None) -> Array:
    """Return the sum of a, or of a * b, over space: (n, c) for (n, c, …)."""
    return (cells(a) if b is None else cells(a) * cells(b)).sum(axis=tuple(range(2, a.ndim)))


def scale_shift(x: Array, scale: Array, shift: Array, over: bool = False) -> Array:
    """Return x * scale + shift: one of each per channel (c,), or per example and channel (n, c)."""
    x = cells(x)
    if scale.ndim == 2:
        space = (1,) * (x.ndim - 2)
        return x * scale.reshape(*scale.shape, *space) + shift.reshape(*shift.shape, *space)
    y = x if over else empty_cells(x.shape, x.dtype)
    if y.size:
        c = x.shape[1]
        rows, packs = x.size // c, -(-c * x.itemsize // 16)
        columns = -(-packs // THREADS)
        width = -(-packs // columns)
        height = THREADS // width
        grid, block = (blocks(rows, height), columns), (width, height)
        each = (_per_channel(name, a, x) for name, a in (("scale", scale), ("shift", shift)))
        launch("scale_shift", "elementwise.cu", x.dtype, grid, block, x, *each, y, rows, c)
    return y


def _per_channel(name: str, value: Array, x: Array) -> Array:
    """Return `value` in C order; raises ValueError unless it is one number of x's dtype each."""
    if value.shape != x.shape[1:2] or value.dtype != x.dtype:
        raise ValueError(f"{name} must be {x.dtype} of shape {x.shape[1:2]}, not {value.shape}")
    return cupy.ascontiguousarray(value)


def bias_grad(dy: Array) -> Array:
    """Return the gradient of `conv2d` or `linear` by b, given dy (n, o) or (n, o, h, w)."""
    return channel_sums(dy)


def channel_sums(a: Array, b: Array | None = None) -> Array:
    """Return the sum of a, or of a * b, over all axes but 1.

    Runs of 16 rows are added in the arrays' dtype, these sums in float64.
    """
    c = a.shape[1]
    if a.size == 0:
        return cupy.zeros(c, a.dtype)
    values = (cells(a),) if b is None else (cells(a), cells_like("b", b, a))
    rows, width = a.size // c, min(c, 32)
    height, columns = THREADS // width, -(-c // width)
    # 1024 blocks fill a large card once
    parts = max(1, min(-(-rows // (_RUN * height)), 1024 // columns))
    partial, sums = cupy.empty((parts, c), np.float64), cupy.empty(c, a.dtype)
    name = "channel_sums" if b is None else "channel_products"
    block = width, height
    args = *values, partial, sums, rows, c, -(-rows // parts)
    launch(name, "reduce.cu", a.dtype, (parts, columns), block, *args)
    if parts > 1:
        launch("total_sums", "reduce.cu", a.dtype, (1, columns), block, partial, sums, parts, c)
    return sums


def lrn(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Return y = x * scale**-beta and scale = k + alpha / size * (sum of x**2 over a window).

    The window of channel c is c - size // 2 … c + (size - 1) // 2, cut off at the ends
    (Krizhevsky et al. 2012, section 3.3, with PyTorch's alpha and placement). Raises ValueError
    for a window that covers more than 5001 channels.
    """
    y, scale = empty_cells(x.shape, x.dtype), empty_cells(x.shape, x.dtype)
    before, after = _reach(size)
    _lrn("lrn", (cells(x), y, scale), before, after, alpha / size, beta, k)
    return y, scale


def lrn_dx(
    dy: Array, x: Array, y: Array, scale: Array, size: int, alpha: float, beta: float
) -> Array:
    """Return the gradient of `lrn` by x, given what it returned."""
    dx = empty_cells(x.shape, x.dtype)
    saved = (
        cells_like(name, a, x) for name, a in (("dy", dy), ("x", x), ("y", y), ("scale", scale))
    )
    # a channel lies in the windows of the channels mirrored about it
    after, before = _reach(size)
    _lrn("lrn_dx", (*saved, dx), before, after, alpha / size, beta)
    return dx


def _reach(size: int) -> tuple[int, int]:
    """Return how many channels a window covers in front of its own and behind it."""
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    return size // 2, (size - 1) // 2


def _lrn(name: str, arrays: tuple[Array, ...], before: int, after: int, *numbers: float) -> None:
    """Start a kernel whose windows reach over `before` channels in front and `after` behind."""
    x = arrays[0]
    if x.size == 0:
        return
    c = x.shape[1]
    before, after = min(before, c - 1), min(after, c - 1)
    margin = before + after
    if margin > _LRN_MARGIN:
        raise ValueError(f"the window covers {margin + 1} channels: {_LRN_MARGIN + 1} are possible")
    grid, shared = blocks(x.size, _LRN_TILE), (_LRN_TILE + margin) * x.itemsize
    args = *arrays, x.size, c, before, after, *(float(number) for number in numbers)
    launch(name, "lrn.cu", x.dtype, grid, THREADS, *args, shared=shared)
