"""Compute on NumPy arrays with compiled kernels: the same functions as `mpicnn.ops.numpy`.

Arrays are float32 or float64, contiguous or not (others are copied first); a result has the dtype
of its first array. The same call returns the same bits, on any number of threads. Wrong shapes and
dtypes raise a ValueError that names the argument. Importing raises ImportError where the kernels
are not built.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpicnn import precision as precisions
from mpicnn import rng
from mpicnn.ops import numpy as plain
from mpicnn.ops._host import (
    Feed,
    Timer,
    fetch,
    flat,
    operand,
    peak_bytes,
    synchronize,
    upload,
    upload_labels,
)
from mpicnn.ops._native_channels import (
    bias_grad,
    channel_sums,
    lrn,
    lrn_dx,
    moments,
    normalise,
    normalise_dx,
    normalise_sums,
)
from mpicnn.ops._native_check import array, integers
from mpicnn.ops._native_contract import conv2d_methods
from mpicnn.ops._native_core import HAS_BLAS, core
from mpicnn.ops._native_pool import avgpool, avgpool_dx, maxpool, maxpool_dx
from mpicnn.ops.activations import ACTIVATIONS
from mpicnn.ops.interface import Array
from mpicnn.ops.numpy import images, topk_correct

if HAS_BLAS:
    from mpicnn.ops._native_contract import (
        conv2d,
        conv2d_dw,
        conv2d_dx,
        linear,
        linear_dw,
        linear_dx,
    )
else:
    from mpicnn.ops.numpy import conv2d, conv2d_dw, conv2d_dx, linear, linear_dw, linear_dx


NAME = "native"
xp = np


def set_threads(count: int) -> None:
    """Let the kernels, and NumPy's matrix products, use `count` threads from now on.

    Kernels use 1 at first.
    """
    plain.set_threads(count)
    core.set_threads(count)


def set_convolution(methods: str) -> None:
    """Let convolutions use any method ("auto", as at first) or no transforms ("direct")."""
    if methods not in ("auto", "direct"):
        raise ValueError(f"methods must be auto or direct, not {methods!r}")
    core.allow_transforms(methods == "auto")


def set_precision(precision: str) -> None:
    """Multiply in this precision from now on (see `mpicnn.precision`): not in "tf32", and in "bf16"
    where the CPU has instructions for it.

    Raises DeviceError for what the CPU does not have.
    """
    if precision == "tf32":
        raise precisions.refuse(precision, "the CPU", "products in tf32")
    products = "float32"
    if precision == "bf16":
        _, *fast = core.bf16_kernels()
        if not fast:
            raise precisions.refuse(precision, "this CPU", "AVX512-BF16 or AMX-BF16 instructions")
        if not HAS_BLAS:
            raise precisions.refuse(precision, "this installation", "OpenBLAS (scipy-openblas32)")
        products = fast[-1]
    core.set_products(products)


def activate(name: str, x: Array, slope: float = 0.0, over: bool = False) -> Array:
    """Return the function `name` of every value of x, in NumPy where there is no kernel for it."""
    x = array("x", x)
    kernel = getattr(core, name, None)
    if kernel is None:
        return plain.activate(name, x, slope, over)
    y = x if over else np.empty_like(x)
    kernel(x, slope, y)
    return y


def activate_dx(
    name: str, dy: Array, saved: Array, slope: float = 0.0, over: bool = False
) -> Array:
    """Return the gradient by x of `activate`."""
    dy = array("dy", dy)
    saved = array(ACTIVATIONS[name].reads, saved, like=dy, shape=dy.shape)
    kernel = getattr(core, f"{name}_dx", None)
    if kernel is None:
        return plain.activate_dx(name, dy, saved, slope, over)
    dx = dy if over else np.empty_like(dy)
    kernel(dy, saved, slope, dx)
    return dx


def mul(x: Array, mask: Array) -> Array:
    """Return x * mask."""
    x = array("x", x)
    mask = array("mask", mask, like=x, shape=x.shape)
    y = np.empty_like(x)
    core.mul(x, mask, y)
    return y


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
    x = array("x", x)
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    positions = integers("positions", positions, np.int64, x.shape[:1])
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in 0 … 1, without 1, not {rate}")
    if first < 0:
        raise ValueError(f"first must not be negative: {first}")
    y, mask = np.empty_like(rows), np.empty_like(rows)
    key, threshold = rng.key(seed, "dropout"), int(rate * 2**32)
    word = rng.LOW
    core.dropout(
        rows, positions, first, step & word, layer & word, key, threshold, 1 / (1 - rate), y, mask
    )
    return y.reshape(x.shape), mask.reshape(x.shape)


def softmax_xent(logits: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the cross-entropy of every example (n,) and its gradient by the logits (n, classes).

    Raises ValueError for a label outside 0 … classes - 1.
    """
    logits = array("logits", logits, ndim=2)
    labels = integers("labels", labels, np.int64, logits.shape[:1])
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels must lie in 0 … {logits.shape[1] - 1}")
    losses, dlogits = np.empty(len(logits), logits.dtype), np.empty_like(logits)
    core.softmax_xent(logits, labels, losses, dlogits)
    return losses, dlogits


def sgd(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place, v <- momentum * v - rate * (g + decay * w), then w <- w + v (OWT)."""
    g = array("g", g)
    if _in_place({"w": w, "v": v}, g):
        core.sgd(w, v, g, rate, momentum, decay)
    else:
        plain.sgd(w, v, g, rate, momentum, decay)


def descend(w: Array, g: Array, rate: float, decay: float) -> None:
    """Update in place, w <- w - rate * (g + decay * w)."""
    g = array("g", g)
    if _in_place({"w": w}, g):
        core.descend(w, g, rate, decay)
    else:
        plain.descend(w, g, rate, decay)


def nesterov(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place as `sgd`, with Nesterov's momentum."""
    g = array("g", g)
    if _in_place({"w": w, "v": v}, g):
        core.nesterov(w, v, g, rate, momentum, decay)
    else:
        plain.nesterov(w, v, g, rate, momentum, decay)


def adam(m: Array, v: Array, g: Array, betas: tuple[float, float], eps: float, count: int) -> None:
    """Update both moments in place by g, and make of g the direction of step `count` (from 1)."""
    if _in_place({"g": g, "m": m, "v": v}, g):
        sums = [1 - beta**count for beta in betas]
        core.adam(m, v, g, 1 - betas[0], 1 - betas[1], eps, sums[0], math.sqrt(sums[1]))
    else:
        plain.adam(m, v, g, betas, eps, count)


def _in_place(changed: dict[str, Array], g: Array) -> bool:
    """Say whether kernels can change these arrays as they lie.

    Raises ValueError for one that differs from g in shape or dtype, or cannot be written.
    """
    for name, value in changed.items():
        array(name, value, like=g, shape=g.shape)
        if not value.flags.writeable:
            raise ValueError(f"{name} must be writeable")
    return all(value.flags.carray for value in changed.values())
