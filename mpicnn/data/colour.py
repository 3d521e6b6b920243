"""Vary the colours of images: brightness, contrast, saturation and hue, in a drawn order."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from mpicnn import rng
from mpicnn.data.layout import Array, Index
from mpicnn.errors import UserError


@dataclass(frozen=True)
class Colour:
    """Say how far colours vary; 0: not at all.

    The factor of brightness, contrast and saturation is uniform in 1 - x … 1 + x (never below 0),
    the turn of the hue in -x … x of the circle (x at most 0.5). Source: torchvision's ColorJitter.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __bool__(self) -> bool:
        """Tell whether any colour varies."""
        return any(astuple(self))

    def check(self, channels: int) -> None:
        """Raise UserError where images of so many channels have no such colours."""
        if self and channels not in ((3,) if self.saturation or self.hue else (1, 3)):
            raise UserError(
                "augmentation: brightness and contrast are of images with 1 or 3 channels, "
                f"saturation and hue of those with 3; these have {channels}"
            )

    def draw(self, seed: int, epoch: int, index: Index) -> tuple[NDArray[np.float64], Index]:
        """Return factors (n, 4) in the order of the fields, and in which order they apply (n, 4).

        They depend on (seed, epoch, place in the data set) alone, `index` being the places.
        """
        ranges = np.array(astuple(self))
        centre = np.array([1.0, 1.0, 1.0, 0.0])
        u = rng.uniform(seed, "colour", epoch, index)
        factors = centre + ranges * (2 * u - 1)
        factors[:, :3] = np.maximum(factors[:, :3], 0)
        order = rng.draws(seed, "colour order", epoch, index).argsort(axis=1, kind="stable")
        return factors, order.astype(np.int64)

    def vary(self, images: Array, factors: NDArray[np.float64], order: Index) -> Array:
        """Return images, uint8 (n, c, h, w), with their colours changed as drawn.

        Values are rounded to 8 bits after each change, as by torchvision on 8-bit images.
        """
        from mpicnn.data.pictures import CHANGES, picture_of  # here: it imports Pillow

        varying = np.array(astuple(self)) > 0
        out = np.empty_like(images)
        for image, target, own, turns in zip(images, out, factors, order, strict=True):
            picture = picture_of(image)
            for which in turns.tolist():
                if varying[which]:
                    picture = CHANGES[which](picture, float(own[which]))
            target[...] = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
        return out
