"""How images become what a network takes: by a mean and a deviation of each channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pixels:
    """Say how images become what a network takes: (pixel - mean) / std, pixels from 0 to 255.

    `mean` and `std` have a number for each channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def near(self, other: Pixels) -> bool:
        """Say whether both are the same but for the rounding of float32."""
        pairs = (self.mean, other.mean), (self.std, other.std)
        return all(len(a) == len(b) and np.allclose(a, b, 1e-5) for a, b in pairs)

    def then(self, inside: Pixels) -> Pixels:
        """Return both in one: this normalisation, and what a graph does to its result."""
        own = zip(self.mean, self.std, strict=True)
        both = list(zip(own, inside.mean, inside.std, strict=True))
        return Pixels(
            tuple(mean + std * further for (mean, std), further, _ in both),
            tuple(std * further for (_, std), _, further in both),
        )


IMAGENET = Pixels((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 of pixels from 0 to 1: torchvision's, and others'."""


def assumed(channels: int, inside: Pixels | None) -> tuple[Pixels, str]:
    """Return how images are normalised before a graph takes them that does not say so, and why.

    A graph that itself takes off a mean is given pixels where that is a mean of pixels, from 0 to
    255 or from 0 to 1. Else images are normalised as for ImageNet, or, of other than three
    channels, are pixels from 0 to 1.
    """
    as_they_are = Pixels((0.0,) * channels, (1.0,) * channels)
    to_one = Pixels((0.0,) * channels, (255.0,) * channels)
    if inside is not None and max(inside.mean) > 2:
        return as_they_are, "as the graph does it, it seems of pixels from 0 to 255"
    if inside is not None and min(inside.mean) >= 0.2 and max(*inside.mean, *inside.std) < 1:
        return to_one, "as the graph does it, it seems of pixels from 0 to 1"
    if channels == len(IMAGENET.mean):
        return IMAGENET, "ImageNet's, as the file does not say; else give --mean and --std"
    return to_one, "pixels from 0 to 1, as the file does not say; else give --mean and --std"
