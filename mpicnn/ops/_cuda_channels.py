"""Scale, add up and normalise channels on a GPU."""

from __future__ import annotations

import cupy
import numpy as np

from mpicnn.ops import _cuda_arrays
from mpicnn.ops._cuda_arrays import THREADS, Array, blocks, cells, cells_like, empty_cells, launch

# As in lrn.cu: values that a block takes at a time, and how many more it may share.
_LRN_TILE = 1024
_LRN_MARGIN = 5000
# As in reduce.cu: the rows that a thread adds up before it goes on in double.
_RUN = 16


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


def moments(x: Array, planes: bool = False) -> tuple[Array, Array]:
    """Return the mean of every channel, and the sum of squares about it, in float64.

    Squares are about the mean of runs of 16 values, put together in float64.
    """
    shape = x.shape[:2] if planes else x.shape[1:2]
    found = tuple(cupy.zeros(shape, np.float64) for _ in range(2))
    if x.size:
        _reduce("moments", 3, (cells(x),), found, planes)
    return found


def normalise_sums(dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """Return the sums of dy and of dy * (x - mean) that belong to each mean."""
    arrays = cells_like("dy", dy, x), cells(x), _numbers("mean", mean, x, _each(x, mean))
    found = tuple(cupy.zeros(mean.shape, x.dtype) for _ in range(2))
    if x.size:
        _reduce("normalise_sums", 2, arrays, found, mean.ndim == 2)
    return found


def _reduce(
    what: str, numbers: int, arrays: tuple[Array, ...], found: tuple[Array, ...], planes: bool
) -> None:
    """Start the kernels that fill `found`; a block finds so many float64 `numbers` per channel."""
    x = arrays[0]
    sets, rows, c = _sets(x, planes)
    width = min(c, 32)
    height, columns = THREADS // width, -(-c // width)
    # 1024 blocks fill a large card once
    parts = max(1, min(-(-rows // (_RUN * height)), 1024 // (columns * sets)))
    partial = cupy.empty((sets, parts, c, numbers) if parts > 1 else 1, np.float64)
    grid, block = _grid(parts, columns, sets), (width, height)
    args = *arrays, partial, *found, sets, rows, c, -(-rows // parts)
    launch(what, "norm.cu", x.dtype, grid, block, *args)
    if parts > 1:
        args = x, partial, *found, sets, parts, c, rows
        launch(f"total_{what}", "norm.cu", x.dtype, _grid(1, columns, sets), block, *args)


def normalise(x: Array, mean: Array, scale: Array, shift: Array, over: bool = False) -> Array:
    """Return (x - mean) * scale + shift: one of each per channel (c,), or per plane (n, c)."""
    named, each = (("mean", mean), ("scale", scale), ("shift", shift)), _each(x, mean)
    numbers = (_numbers(name, a, x, each) for name, a in named)
    return _rows("normalise", (cells(x),), tuple(numbers), over)


def normalise_dx(dy: Array, x: Array, mean: Array, factors: Array, over: bool = False) -> Array:
    """Return dy * scale - ((x - mean) * along + shift), given these three as `factors`."""
    each = _each(x, mean)
    numbers = _numbers("mean", mean, x, each), _numbers("factors", factors, x, (3, *each))
    return _rows("normalise_dx", (cells_like("dy", dy, x), cells(x)), numbers, over)


def _rows(name: str, arrays: tuple[Array, ...], numbers: tuple[Array, ...], over: bool) -> Array:
    """Return what a kernel makes of values and their channels' numbers, maybe over the first."""
    x = arrays[0]
    y = x if over else empty_cells(x.shape, x.dtype)
    if y.size:
        sets, rows, c = _sets(x, numbers[0].ndim == 2)
        packs = -(-c * x.itemsize // 16)
        columns = -(-packs // THREADS)
        width = -(-packs // columns)
        height = THREADS // width
        grid = _grid(blocks(rows, height), columns, sets)
        launch(name, "norm.cu", x.dtype, grid, (width, height), *arrays, *numbers, y, sets, rows, c)
    return y


def _sets(x: Array, planes: bool) -> tuple[int, int, int]:
    """Return how x lies as (sets, rows, c): a set has the same numbers per channel."""
    n, c = x.shape[:2]
    pixels = x.size // max(1, n * c)
    return (n, pixels, c) if planes else (1, n * pixels, c)


def _grid(across: int, columns: int, sets: int) -> tuple[int, int, int]:
    """Return a grid for so many blocks at most, in which sets follow one another."""
    return across, columns, max(1, min(sets, _cuda_arrays.BLOCKS // (across * columns)))


def _each(x: Array, mean: Array) -> tuple[int, ...]:
    """Return the shape of one number per channel, or per plane where `mean` has two axes."""
    return x.shape[:2] if mean.ndim == 2 else x.shape[1:2]


def _numbers(name: str, value: Array, x: Array, shape: tuple[int, ...]) -> Array:
    """Return `value` in C order; raises ValueError unless it is of x's dtype and this shape."""
    if value.shape != shape or value.dtype != x.dtype:
        raise ValueError(f"{name} must be {x.dtype} of shape {shape}, not {value.shape}")
    return cupy.ascontiguousarray(value)


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
