"""Normalise activations over neighbouring channels or over the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from mpicnn.errors import UserError
from mpicnn.layers._fields import check_image, check_numbers, check_positive, is_number
from mpicnn.layers.base import Array, Context, Layer, Param, Shape
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class LRN(Layer):
    """Divide x by (k + alpha / size * sum of x**2 over `size` neighbouring channels)**beta.

    The window of channel c is c - size // 2 … c + (size - 1) // 2, cut off at the ends: exactly
    `torch.nn.LocalResponseNorm`. cuda-convnet, Caffe and ONNX divide alpha by the size too, so
    their values are used unchanged (cuda-convnet calls them `scale` and `pow`, and has k = 1; for
    an even size ONNX puts the window one channel further on). Krizhevsky, Sutskever and Hinton
    2012, section 3.3, multiply the bare sum: give size times the paper's alpha, so that its
    n = 5, alpha = 1e-4, beta = 0.75, k = 2 becomes `LRN(5, 5e-4, 0.75, 2.0)`.
    Raises UserError for values that make no normalisation.
    """

    kind: ClassVar[str] = "examplewise"

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "size")
        check_numbers(self, 0, "alpha", "beta", "k")
        if self.k == 0:
            raise UserError("LRN: k is 0, which divides by 0 where x is 0: give a positive number")

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape (c, h, w) unchanged."""
        check_image(self, shape)
        return shape

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        y, scale = ops.lrn(x, self.size, self.alpha, self.beta, self.k)
        return y, (x, y, scale)

    def backward(
        self, ops: Backend, dy: Array, saved: Any, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        x, y, scale = saved
        return ops.lrn_dx(dy, x, y, scale, self.size, self.alpha, self.beta), {}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalise every channel by its mean and variance over the global batch, then scale it.

    y = (x - mean) / sqrt(var + eps) * gamma + beta for x (n, c, h, w) or (n, c); Ioffe and
    Szegedy 2015, as `torch.nn.BatchNorm2d`. In training mean and variance are those of the whole
    batch, however it is divided, and the buffers follow them (the variance unbiased) by
    `momentum`; in evaluation they are the buffers. Raises UserError for bad values.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_numbers(self, 0, "eps")
        if not is_number(self.momentum, 0) or self.momentum > 1:
            raise UserError(f"BatchNorm: momentum is {self.momentum!r}: give a number from 0 to 1")

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return gamma (c,) and beta (c,), both left alone by weight decay."""
        return {
            "gamma": Param((shape[0],), "ones", bias=True),
            "beta": Param((shape[0],), "zeros", bias=True),
        }

    def buffers(self, shape: Shape) -> dict[str, Param]:
        """Return the running mean (c,) and var (c,)."""
        return {"mean": Param((shape[0],), "zeros"), "var": Param((shape[0],), "ones")}

    def batch_sums(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return lengths: mean and variance forward, both parameters' gradients backward."""
        return (shape[0], shape[0]), (2 * shape[0],)

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        mean, var = p["mean"], p["var"]
        if ctx.train:
            values = _values_per_channel(x, ctx)
            mean = ctx.batch_sum(ops.channel_sums(x)) / values
        centred = ops.scale_shift(x, ops.xp.ones_like(mean), -mean)
        if ctx.train:
            # squares of centred values: a difference of two large sums would cancel
            var = ctx.batch_sum(ops.channel_sums(centred, centred)) / values
            unbiased = var * (values / max(1, values - 1))
            p["mean"] += self.momentum * (mean - p["mean"])
            p["var"] += self.momentum * (unbiased - p["var"])
        inverse = 1 / ops.xp.sqrt(var + self.eps)
        return ops.scale_shift(centred, p["gamma"] * inverse, p["beta"]), (centred, inverse)

    def backward(
        self, ops: Backend, dy: Array, saved: Any, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        centred, inverse = saved
        dgamma, dbeta = ops.channel_sums(dy, centred) * inverse, ops.channel_sums(dy)
        grads = {"gamma": dgamma, "beta": dbeta}
        if not ctx.need_dx:
            return None, grads
        scale = p["gamma"] * inverse
        dx = ops.scale_shift(dy, scale, ops.xp.zeros_like(scale))
        if ctx.train:
            sums = ctx.batch_sum(ops.xp.stack((dgamma, dbeta)))
            dgamma, dbeta = sums / _values_per_channel(dy, ctx)
            # the batch's mean and variance depend on x as well
            dx -= ops.scale_shift(centred, scale * inverse * dgamma, scale * dbeta)
        return dx, grads


def _values_per_channel(x: Array, ctx: Context) -> int:
    return max(1, ctx.count * math.prod(x.shape[2:]))
