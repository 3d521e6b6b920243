"""Mix each image of a batch with the one before it: mixup and cutmix."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sqrt

import numpy as np

from mpicnn import rng
from mpicnn.data.layout import Array, Index
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class Mixture:
    """Say how the images of a batch are mixed: each keeps `weight`, its partner gives the rest.

    With a `box` (top, bottom, left, right) the partner's pixels replace those in it, without one
    all pixels are averaged.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None

    def blend(self, ops: Backend, x: Array, partners: Index) -> Array:
        """Return the first len(partners) of the images x (n, c, h, w), mixed with x[partners].

        x is overwritten.
        """
        own, partners = x[: len(partners)], ops.xp.asarray(partners)
        if self.box is None:
            given = x[partners]
            given *= 1 - self.weight
            own *= self.weight
            own += given
        else:
            top, bottom, left, right = self.box
            own[:, :, top:bottom, left:right] = x[:, :, top:bottom, left:right][partners]
        return own


@dataclass(frozen=True)
class Mixing:
    """Say which batches are mixed, and how strongly.

    `mixup` and `cutmix` are the parameter a of Beta(a, a), from which the weight is drawn once for
    each batch; 0: off. Where both are on, each batch draws one of them. `probability` is that of
    a batch being mixed. Sources: Zhang, Cisse, Dauphin, Lopez-Paz 2018 (arXiv 1710.09412); Yun et
    al. 2019 (arXiv 1905.04899).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    probability: float = 1.0

    def draw(self, seed: int, step: int, size: tuple[int, int]) -> Mixture | None:
        """Return how the batch of a step is mixed, None if it is not; images have `size`.

        It depends on (seed, step) alone. A box has its centre anywhere in the image, and what of
        it lies outside is cut off; the weight is that of the pixels that stay.
        """
        if not (self.mixup or self.cutmix):
            return None
        draws = rng.uniform(seed, "mix", step, np.arange(2))
        (mixed, which, u, v), (row, column, _, _) = draws.tolist()
        if mixed >= self.probability:
            return None
        cut = which < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        weight = symmetric_beta(self.cutmix if cut else self.mixup, u, v)
        if not cut:
            return Mixture(weight)
        half = sqrt(1 - weight) / 2
        (top, bottom), (left, right) = (
            (max(0, centre - int(half * extent)), min(extent, centre + int(half * extent)))
            for extent, centre in zip(
                size, (int(row * size[0]), int(column * size[1])), strict=True
            )
        )
        inside = (bottom - top) * (right - left)
        return Mixture(1 - inside / (size[0] * size[1]), (top, bottom, left, right))


def partner_labels(labels: Index) -> Index:
    """Return the labels of the partners of all images of a batch, whose own are `labels`."""
    return np.roll(labels, 1)


def with_partners(positions: Index, count: int) -> tuple[Index, Index]:
    """Return the positions in a batch of `count` to read, and where in them the partners are.

    The first to be read are `positions`. The partner of an image is the one before it in the
    batch, the first one's is the last: as good as any other, as batches are in random order, and a
    rank whose positions follow one another reads one image more. (torchvision's MixUp and CutMix
    have the same partners.)
    """
    wanted = (positions - 1) % count
    read = np.concatenate([positions, np.setdiff1d(wanted, positions)])
    order = np.argsort(read, kind="stable")
    return read, order[np.searchsorted(read, wanted, sorter=order)]


def symmetric_beta(a: float, u: float, v: float) -> float:
    """Return a draw of Beta(a, a), a > 0, from two of the uniform distribution on [0, 1).

    Source: Devroye 1996, "Random variate generation in one line of code": Bailey's t distribution
    with 2 a degrees of freedom, mapped to (0, 1).
    """
    power, side = u ** (1 / a), cos(2 * pi * v)
    square = (1 - power) * side * side
    return 0.5 + (0.5 if side > 0 else -0.5) * sqrt(square / (power + square))
