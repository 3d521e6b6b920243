"""Compute on CuPy arrays with one NVIDIA GPU: the same functions as `mpicnn.ops.numpy`.

Arrays are float32 or float64 with any strides; a result has the dtype of its first array, and its
channels last in memory (NHWC). Inputs that are not laid out so are copied first. The same call
returns the same bits. Labels and positions are NumPy arrays. Functions return before the GPU has
finished; nothing here waits for it. Subnormal float32 values may count as 0. Wrong shapes and
dtypes raise ValueError. Importing raises ImportError where CuPy is not installed.
"""

from __future__ import annotations

import math

import cupy
import numpy as np
from numpy.typing import NDArray

from mpicnn import rng
from mpicnn.ops._cuda_arrays import (
    THREADS,
    Array,
    blocks,
    cells,
    cells_like,
    empty_cells,
    flat,
    launch,
    plain,
)
from mpicnn.ops._cuda_channels import (
    bias_grad,
    channel_sums,
    lrn,
    lrn_dx,
    moments,
    normalise,
    normalise_dx,
    normalise_sums,
)
from mpicnn.ops._cuda_conv import conv2d, conv2d_dw, conv2d_dx, conv2d_methods
from mpicnn.ops._cuda_images import images
from mpicnn.ops._cuda_linear import linear, linear_dw, linear_dx
from mpicnn.ops._cuda_loss import softmax_xent, topk_correct, upload_labels
from mpicnn.ops._cuda_pool import avgpool, avgpool_dx, maxpool, maxpool_dx
from mpicnn.ops._cuda_precision import set_convolution, set_precision
from mpicnn.ops._cuda_rounded import operand
from mpicnn.ops._cuda_transfer import Feed, Timer, fetch, peak_bytes, synchronize, upload
from mpicnn.ops.activations import ACTIVATIONS

NAME = "cuda"
xp = cupy

_KERNELS = "relu", "relu6", "leakyrelu", "hardswish", "sigmoid", "tanh", "silu", "gelu"


def set_threads(count: int) -> None:
    """Change nothing: the GPU has its own threads."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")


def activate(name: str, x: Array, slope: float = 0.0, over: bool = False) -> Array:
    """Return the function `name` of every value of x, by CuPy where there is no kernel for it."""
    if name not in _KERNELS:
        return ACTIVATIONS[name].function(cupy, cells(x), slope)
    return _stream(f"{name}_y", cells(x), number=slope, over=over)


def activate_dx(
    name: str, dy: Array, saved: Array, slope: float = 0.0, over: bool = False
) -> Array:
    """Return the gradient by x of `activate`."""
    row = ACTIVATIONS[name]
    saved = cells_like(row.reads, saved, dy)
    if name not in _KERNELS:
        return row.derivative(cupy, cells(dy), saved, slope)
    return _stream(f"{name}_dx", cells(dy), saved, number=slope, over=over)


def mul(x: Array, mask: Array) -> Array:
    """Return x * mask."""
    return _stream("mul", cells(x), cells_like("mask", mask, x))


def _stream(name: str, *inputs: Array, number: float = 0.0, over: bool = False) -> Array:
    """Return what an elementwise kernel makes of inputs that lie alike in memory, and a number.

    It is written over the first input, or not.
    """
    y = inputs[0] if over else empty_cells(inputs[0].shape, inputs[0].dtype)
    if y.size:
        args = *inputs, y, y.size, float(number)
        launch(name, "elementwise.cu", y.dtype, _streams(y), THREADS, *args)
    return y


def _streams(x: Array) -> int:
    """Return how many blocks a kernel wants whose threads take 16 bytes of x at a time."""
    return blocks(x.nbytes, 16 * THREADS)


def dropout(
    x: Array,
    rate: float,
    seed: int,
    layer: int,
    step: int,
    positions: NDArray[np.int64],
    first: int,
) -> tuple[Array, Array]:
    """Return x * mask and the mask, which is 0 with probability `rate`, else 1 / (1 - rate)."""
    if positions.shape != x.shape[:1]:
        raise ValueError(f"positions must have shape {x.shape[:1]}, not {positions.shape}")
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in 0 … 1, without 1, not {rate}")
    if first < 0:
        raise ValueError(f"first must not be negative: {first}")
    y, mask = empty_cells(x.shape, x.dtype), empty_cells(x.shape, x.dtype)
    if y.size:
        n, c, pixels = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        if pixels == 1:  # then features are neighbours in memory
            c, pixels = 1, c
        counter = (np.uint32(word & rng.LOW) for word in (step, layer, *rng.key(seed, "dropout")))
        mark = np.uint64(int(rate * 2**32)), 1 / (1 - rate)
        grid = blocks((pixels + 6) // 4 * c), min(n, 65535)
        places = cupy.asarray(positions, np.int64)
        args = cells(x), places, y, mask, n, c, pixels, first, *counter, *mark
        launch("dropout", "dropout.cu", x.dtype, grid, THREADS, *args)
    return y, mask


def sgd(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place, v <- momentum * v - rate * (g + decay * w), then w <- w + v (OWT)."""
    _update("sgd", {"w": w, "v": v}, g, rate, momentum, decay)


def descend(w: Array, g: Array, rate: float, decay: float) -> None:
    """Update in place, w <- w - rate * (g + decay * w)."""
    _update("descend", {"w": w}, g, rate, decay)


def nesterov(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place as `sgd`, with Nesterov's momentum."""
    _update("nesterov", {"w": w, "v": v}, g, rate, momentum, decay)


def adam(m: Array, v: Array, g: Array, betas: tuple[float, float], eps: float, count: int) -> None:
    """Update both moments in place by g, and make of g the direction of step `count` (from 1)."""
    sums = [1 - beta**count for beta in betas]
    numbers = 1 - betas[0], 1 - betas[1], eps, sums[0], math.sqrt(sums[1])
    _update("adam", {"m": m, "v": v, "g": g}, None, *numbers)


def _update(name: str, changed: dict[str, Array], read: Array | None, *numbers: float) -> None:
    """Run a kernel that changes arrays of one shape item by item, in place, and may read one."""
    arrays = list(changed.values()) + ([] if read is None else [read])
    like = arrays[-1]
    for what, value in changed.items():
        if value.shape != like.shape or value.dtype != like.dtype:
            raise ValueError(
                f"{what} must be {like.dtype} of shape {like.shape}, not {value.shape}"
            )
    if like.size == 0:
        return
    # gradients of kernels lie as w does, those that travelled in C order
    lay = plain if arrays[0].flags.c_contiguous else cells
    laid = [lay(a) for a in arrays]
    count = _streams(like)
    launch(name, "update.cu", like.dtype, count, THREADS, *laid, like.size, *map(float, numbers))
    for given, updated in zip(changed.values(), laid, strict=False):
        if updated is not given:
            given[...] = updated
