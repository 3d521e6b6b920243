"""Compute on NumPy arrays: the complete, plain backend that the others are compared with.

Arrays are float32 or float64 in logical order n c h w, contiguous or not; a result has the dtype
of its first array. Any axis may have length 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from mpicnn import precision as precisions
from mpicnn import rng
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
from mpicnn.ops._numpy_conv import conv2d, conv2d_dw, conv2d_dx, conv2d_methods
from mpicnn.ops._numpy_images import images
from mpicnn.ops._numpy_pool import avgpool, avgpool_dx, maxpool, maxpool_dx
from mpicnn.ops.activations import ACTIVATIONS
from mpicnn.ops.interface import Array

NAME = "numpy"
xp = np


def set_threads(count: int) -> None:
    """Let NumPy's matrix products use `count` threads from now on."""
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    threadpool_limits(count, user_api="blas")


def set_convolution(methods: str) -> None:
    """Accept "auto" and "direct", which change nothing: there is one method."""
    if methods not in ("auto", "direct"):
        raise ValueError(f"methods must be auto or direct, not {methods!r}")


def set_precision(precision: str) -> None:
    """Multiply in this precision from now on (see `mpicnn.precision`): "float32" or "float64".

    Raises DeviceError for the others.
    """
    if precision not in ("float32", "float64"):
        raise precisions.refuse(precision, "the numpy backend", f"products in {precision}")


_ROWS = 128


def linear(x: Array, w: Array, b: Array | None, relu: bool = False) -> Array:
    """Return y = x w^T + b for x (n, c), w (o, c) and b (o,)."""
    y: Array = x @ w.T
    if b is not None:
        y += b
    if relu:
        np.maximum(y, 0, out=y)
    return y


def linear_dx(dy: Array, w: Array) -> Array:
    """Return the gradient of `linear` by x, given dy (n, o)."""
    return dy @ w


def linear_dw(x: Array, dy: Array, dw: Array | None = None) -> Array:
    """Return the gradient of `linear` by w, given dy (n, o); added to `dw`, in place, if given."""
    if dw is None:
        return dy.T @ x
    for row in range(0, len(dw), _ROWS):  # so that the summand takes little memory
        dw[row : row + _ROWS] += dy[:, row : row + _ROWS].T @ x
    return dw


def bias_grad(dy: Array) -> Array:
    """Return the gradient of `conv2d` or `linear` by b, given dy (n, o) or (n, o, h, w)."""
    return channel_sums(dy)


def channel_sums(a: Array, b: Array | None = None) -> Array:
    """Return the sum of a, or of a * b, over all axes but 1; examples are added in float64."""
    shape = (a.shape[0], a.shape[1], math.prod(a.shape[2:]))
    if b is None:
        planes = a.reshape(shape).sum(axis=2)
    else:
        planes = np.einsum("nci,nci->nc", a.reshape(shape), b.reshape(shape))
    return planes.sum(axis=0, dtype=np.float64).astype(a.dtype)


def moments(x: Array, planes: bool = False) -> tuple[Array, Array]:
    """Return the mean of every channel, and the sum of squares about it, in float64."""
    axes = _summed(x, planes)
    count = max(1, math.prod(x.shape[axis] for axis in axes))
    mean = x.sum(axis=axes, dtype=np.float64, keepdims=True) / count
    squares = np.square(x - mean).sum(axis=axes)
    return mean.reshape(squares.shape), squares


def normalise(x: Array, mean: Array, scale: Array, shift: Array, over: bool = False) -> Array:
    """Return (x - mean) * scale + shift: one of each per channel (c,), or per plane (n, c)."""
    y: Array = np.subtract(x, _spread(mean, x), out=x if over else None)
    y *= _spread(scale, x)
    y += _spread(shift, x)
    return y


def normalise_sums(dy: Array, x: Array, mean: Array) -> tuple[Array, Array]:
    """Return the sums of dy and of dy * (x - mean) that belong to each mean."""
    both = dy, dy * (x - _spread(mean, x))
    axes = _summed(x, mean.ndim == 2)
    sums, products = (a.sum(axis=axes, dtype=np.float64).astype(x.dtype) for a in both)
    return sums, products


def normalise_dx(dy: Array, x: Array, mean: Array, factors: Array, over: bool = False) -> Array:
    """Return dy * scale - ((x - mean) * along + shift), given these three as `factors`."""
    scale, along, shift = factors
    dx: Array = np.multiply(dy, _spread(scale, x), out=dy if over else None)
    dx -= normalise(x, mean, along, shift)
    return dx


def _summed(x: Array, planes: bool) -> tuple[int, ...]:
    """Return the axes over which a channel of x, or one of its planes, reaches."""
    space = range(2, x.ndim)
    return tuple(space) if planes else (0, *space)


def _spread(each: Array, x: Array) -> Array:
    """Return numbers per channel (c,), or per plane (n, c), with an axis for each other of x."""
    return each.reshape(*each.shape, *(1,) * (x.ndim - 2))


def mul(x: Array, mask: Array) -> Array:
    """Return x * mask."""
    return x * mask


def activate(name: str, x: Array, slope: float = 0.0, over: bool = False) -> Array:
    """Return the function `name` of every value of x."""
    return _stored(ACTIVATIONS[name].function(np, x, slope), x, over)


def activate_dx(
    name: str, dy: Array, saved: Array, slope: float = 0.0, over: bool = False
) -> Array:
    """Return the gradient by x of `activate`."""
    return _stored(ACTIVATIONS[name].derivative(np, dy, saved, slope), dy, over)


def _stored(result: Array, place: Array, over: bool) -> Array:
    """Return a result, in the memory of `place` where it may be written `over`.

    So the plain backend shows, as the others would, where that is wrong.
    """
    if over:
        place[...] = result
    return place if over else result


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
    features = (first, first + math.prod(x.shape[1:]))
    mask = rng.dropout_mask(rate, seed, layer, step, positions, features, x.dtype)
    mask = mask.reshape(x.shape)
    return x * mask, mask


def lrn(x: Array, size: int, alpha: float, beta: float, k: float) -> tuple[Array, Array]:
    """Return y = x * scale**-beta and scale = k + alpha / size * (sum of x**2 over a window)."""
    scale = _window_sum(x * x, size // 2, (size - 1) // 2)
    scale *= alpha / size
    scale += k
    return x * _inverse_power(scale, beta), scale


def lrn_dx(
    dy: Array, x: Array, y: Array, scale: Array, size: int, alpha: float, beta: float
) -> Array:
    """Return the gradient of `lrn` by x, given what it returned."""
    # a channel lies in the windows of the channels mirrored about it
    dx = _window_sum(dy * y / scale, (size - 1) // 2, size // 2)
    dx *= x
    dx *= -2 * alpha * beta / size
    dx += dy * _inverse_power(scale, beta)
    return dx


def _window_sum(a: Array, before: int, after: int) -> Array:
    """Return, for every channel, the sum over it, `before` ones in front and `after` behind."""
    total = a.copy()
    channels = a.shape[1]
    for d in range(1, min(after, channels - 1) + 1):
        total[:, :-d] += a[:, d:]
    for d in range(1, min(before, channels - 1) + 1):
        total[:, d:] += a[:, :-d]
    return total


def _inverse_power(scale: Array, beta: float) -> Array:
    """Return scale**-beta."""
    # the papers' beta; square roots take a third of the time of a general power
    if beta == 0.75:
        root = np.sqrt(scale)
        root *= np.sqrt(root)
        return np.reciprocal(root, out=root)
    return scale**-beta


def softmax_xent(logits: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the cross-entropy of every example (n,) and its gradient by the logits."""
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    dlogits = np.exp(shifted)
    total = dlogits.sum(axis=1)
    losses = np.log(total) - shifted[rows, labels]
    dlogits /= total[:, None]
    dlogits[rows, labels] -= 1
    return losses, dlogits


def topk_correct(logits: Array, labels: NDArray[np.int64], ks: Sequence[int]) -> Array:
    """Return, for every k, how many labels have fewer than k other logits not below theirs."""
    own = logits[np.arange(len(logits)), labels]
    not_below = logits.shape[1] - (logits < own[:, None]).sum(axis=1)
    # the label's own logit is one of those not below it
    return np.array([(not_below <= k).sum() for k in ks], np.int64)


def sgd(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place, v <- momentum * v - rate * (g + decay * w), then w <- w + v (OWT)."""
    v *= momentum
    v -= rate * (g + decay * w)
    w += v


def descend(w: Array, g: Array, rate: float, decay: float) -> None:
    """Update in place, w <- w - rate * (g + decay * w)."""
    w -= rate * (g + decay * w)


def nesterov(w: Array, v: Array, g: Array, rate: float, momentum: float, decay: float) -> None:
    """Update in place as `sgd`, with Nesterov's momentum."""
    change = g + decay * w
    change *= rate
    v *= momentum
    v -= change
    w += momentum * v
    w -= change


def adam(m: Array, v: Array, g: Array, betas: tuple[float, float], eps: float, count: int) -> None:
    """Update both moments in place by g, and make of g the direction of step `count` (from 1)."""
    m += (1 - betas[0]) * (g - m)
    v += (1 - betas[1]) * (g * g - v)
    np.sqrt(v, out=g)
    g /= math.sqrt(1 - betas[1] ** count)
    g += eps
    g *= 1 - betas[0] ** count
    np.divide(m, g, out=g)
