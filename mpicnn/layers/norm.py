"""Normalise activations over neighbouring channels or over the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mpicnn.errors import UserError
from mpicnn.layers._fields import check_image, check_numbers, check_positive, is_number
from mpicnn.layers.base import Array, Context, Layer, Param, Shape, Tape
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
    views = frozenset()

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

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of the divisors."""
        return math.prod(y_shape) * itemsize

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        return ops.lrn(x, self.size, self.alpha, self.beta, self.k)

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        if not ctx.need_dx:
            return None, {}
        args = self.size, self.alpha, self.beta
        return ops.lrn_dx(dy, tape.x, tape.y, tape.made, *args), {}


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Normalise every channel by its mean and variance over the global batch, then scale it.

    y = (x - mean) / sqrt(var + eps) * gamma + beta for x (n, c, h, w) or (n, c); Ioffe and
    Szegedy 2015, as `torch.nn.BatchNorm2d`. In training mean and variance are those of the whole
    batch, however it is divided, and the buffers follow them (the variance unbiased) by
    `momentum`; in evaluation they are the buffers. gamma starts as `init`, "ones" or "zeros" (the
    end of a residual block then starts as nothing; Goyal et al. 2017). Raises UserError for bad
    values.
    """

    reads = frozenset({"x"})
    views = frozenset()
    overwrites: ClassVar[bool] = True

    momentum: float = 0.1
    eps: float = 1e-5
    init: str = "ones"

    def __post_init__(self) -> None:
        check_numbers(self, 0, "eps")
        if not is_number(self.momentum, 0) or self.momentum > 1:
            raise UserError(f"BatchNorm: momentum is {self.momentum!r}: give a number from 0 to 1")
        if self.init not in ("ones", "zeros"):
            raise UserError(f'BatchNorm: init is {self.init!r}: give "ones" or "zeros"')

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return gamma (c,) and beta (c,), both left alone by weight decay."""
        return {
            "gamma": Param((shape[0],), self.init, bias=True),
            "beta": Param((shape[0],), "zeros", bias=True),
        }

    def buffers(self, shape: Shape) -> dict[str, Param]:
        """Return the running mean (c,) and var (c,)."""
        return {"mean": Param((shape[0],), "zeros"), "var": Param((shape[0],), "ones")}

    def batch_sums(self, shape: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return lengths: four sums forward, both parameters' gradients backward."""
        return (4 * shape[0],), (2 * shape[0],)

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of three numbers per channel."""
        return 3 * y_shape[1] * itemsize

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        mean, off, var = p["mean"].copy(), ops.xp.zeros_like(p["mean"]), p["var"]
        if ctx.train:
            mean, off, var = self._of_batch(ops, x, p, ctx)
        inverse = 1 / ops.xp.sqrt(var + self.eps)
        scale = p["gamma"] * inverse
        y = ops.normalise(x, mean, scale, p["beta"] - scale * off, "x" in ctx.over)
        return y, (mean, inverse, off)

    def _of_batch(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Array, Array]:
        """Return the batch's mean, how far off its rounding is, and its variance; update buffers.

        All have the same bits on all ranks.

        The sums of squares of all ranks are put together as in Chan, Golub and LeVeque 1979:
        those about each rank's mean, and its count times the square of its mean's distance from
        that of all. This is written as sums about a number that all ranks know, the running mean,
        so that one collective does. Where that is far from the batch's mean the sums are large and
        their difference small. So the distances are cut into a part of few digits, whose sums and
        their differences are exact, and a rest, which is small.
        """
        count, total = _values(x, len(x)), _values(x, ctx.count)
        running = p["mean"].astype(np.float64)
        mean, squares = ops.moments(x)
        distance = mean - running
        coarse = _few_digits(distance, total)
        fine = distance - coarse
        terms = coarse, coarse * coarse, fine, fine * (2 * coarse + fine)
        parts = ops.xp.stack([count * term for term in terms])
        parts[3] += squares
        first, second, first_fine, second_fine = ctx.batch_sum(parts)
        values = max(1, total)
        # the same sums about a number near the mean of all
        near = _few_digits(first / values, total)
        second = second - near * (2 * first - values * near)
        rest = (first - values * near + first_fine) / values
        var = (second + (second_fine - 2 * near * first_fine)) / values - rest * rest
        var = ops.xp.maximum(var, 0)
        mean = (running + (near + rest)).astype(x.dtype)
        off = ((running - mean) + near) + rest
        unbiased = var * (values / max(1, values - 1))
        p["mean"] += self.momentum * (near + rest).astype(x.dtype)
        p["var"] += self.momentum * (unbiased.astype(x.dtype) - p["var"])
        return mean, off.astype(x.dtype), var.astype(x.dtype)

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        mean, inverse, off = tape.made
        grads = {}
        if ctx.need_dw or ctx.train:
            dbeta, products = ops.normalise_sums(dy, tape.x, mean)
            dgamma = (products - off * dbeta) * inverse
            grads = {"gamma": dgamma, "beta": dbeta}
        if not ctx.need_dx:
            return None, grads
        scale, over = p["gamma"] * inverse, "dy" in ctx.over
        if not ctx.train:
            none = ops.xp.zeros_like(scale)
            return ops.normalise(dy, none, scale, none, over), grads
        sums = ctx.batch_sum(ops.xp.stack((dgamma, dbeta)).astype(np.float64))
        dgamma, dbeta = (sums / max(1, _values(dy, ctx.count))).astype(dy.dtype)
        # the batch's mean and variance depend on x as well
        along = scale * inverse * dgamma
        factors = ops.xp.stack((scale, along, scale * dbeta - along * off))
        return ops.normalise_dx(dy, tape.x, mean, factors, over), grads


def _values(x: Array, examples: int) -> int:
    """Return how many values a channel has in so many examples like those of x."""
    return examples * math.prod(x.shape[2:])


def _few_digits(a: Array, count: int) -> Array:
    """Return float64 numbers rounded to so few digits that sums of `count` squares are exact.

    By Veltkamp's splitting (Dekker 1971): float64 has 53 binary digits.
    """
    digits = (52 - count.bit_length()) // 2
    grown = a * (2.0 ** (53 - digits) + 1)
    return grown - (grown - a)


@dataclass(frozen=True)
class GroupNorm(Layer):
    """Normalise every example's groups of channels by their own mean and variance, then scale.

    y = (x - mean) / sqrt(var + eps) * gamma + beta for x (n, c, h, w) or (n, c), gamma and beta
    (c,); Wu and He 2018, as `torch.nn.GroupNorm`. Nothing depends on the batch, in training or
    evaluation. Raises UserError for bad values.
    """

    kind: ClassVar[str] = "examplewise"
    reads = frozenset({"x"})
    views = frozenset()
    overwrites: ClassVar[bool] = True

    groups: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_positive(self, "groups")
        check_numbers(self, 0, "eps")

    def out_shape(self, shape: Shape) -> Shape:
        """Return the shape unchanged."""
        if shape[0] % self.groups:
            raise UserError(
                f"GroupNorm: {shape[0]} channels do not divide into {self.groups} groups"
            )
        return shape

    def params(self, shape: Shape) -> dict[str, Param]:
        """Return gamma (c,) and beta (c,), both left alone by weight decay."""
        return {
            "gamma": Param((shape[0],), "ones", bias=True),
            "beta": Param((shape[0],), "zeros", bias=True),
        }

    def made_bytes(self, x_shapes: Sequence[Shape], y_shape: Shape, itemsize: int) -> int:
        """Return the bytes of two numbers per example and channel."""
        return 2 * math.prod(y_shape[:2]) * itemsize

    def forward(
        self, ops: Backend, x: Array, p: dict[str, Array], ctx: Context
    ) -> tuple[Array, Any]:
        means, squares = ops.moments(x, True)
        mean = self._means(ops, means)
        # of a group: as in Chan, Golub and LeVeque 1979
        var = self._means(ops, squares / max(1, _values(x, 1)) + (means - mean) ** 2)
        mean, var = mean.astype(x.dtype), var.astype(x.dtype)
        inverse = 1 / ops.xp.sqrt(var + self.eps)
        scale = p["gamma"] * inverse
        shift = ops.xp.broadcast_to(p["beta"], scale.shape)
        return ops.normalise(x, mean, scale, shift, "x" in ctx.over), (mean, inverse)

    def backward(
        self, ops: Backend, dy: Array, tape: Tape, p: dict[str, Array], ctx: Context
    ) -> tuple[Array | None, dict[str, Array]]:
        mean, inverse = tape.made
        dbeta, products = ops.normalise_sums(dy, tape.x, mean)
        dgamma = products * inverse
        grads = {"gamma": dgamma.sum(axis=0), "beta": dbeta.sum(axis=0)} if ctx.need_dw else {}
        if not ctx.need_dx:
            return None, grads
        # a group's mean and variance depend on x as well
        pull = inverse / max(1, _values(dy, 1))
        along = pull * inverse * self._means(ops, p["gamma"] * dgamma)
        shift = pull * self._means(ops, p["gamma"] * dbeta)
        factors = ops.xp.stack((p["gamma"] * inverse, along, shift))
        return ops.normalise_dx(dy, tape.x, mean, factors, "dy" in ctx.over), grads

    def _means(self, ops: Backend, each: Array) -> Array:
        """Return, for every channel (n, c), the mean of numbers of its group's channels."""
        n, c = each.shape
        of_groups = each.reshape(n, self.groups, c // self.groups).mean(axis=2)
        return ops.xp.repeat(of_groups, c // self.groups, axis=1)
