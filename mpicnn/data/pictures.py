"""Change the colours of one picture, by Pillow: imported where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance

from mpicnn.data.layout import Array


def picture_of(image: Array) -> Image.Image:
    """Return an image (c, h, w) of one or three channels as Pillow has it."""
    planes = [Image.fromarray(plane) for plane in image]
    return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)


def _brightness(picture: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(factor)


def _contrast(picture: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(picture).enhance(factor)


def _saturation(picture: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(factor)


def _hue(picture: Image.Image, turn: float) -> Image.Image:
    """Turn the hue, which has 8 bits as well, by `turn` of the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    turned = Image.fromarray(np.asarray(hue) + np.uint8(int(turn * 255) % 256))
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


CHANGES: tuple[Callable[[Image.Image, float], Image.Image], ...] = (
    _brightness, _contrast, _saturation, _hue,
)  # fmt: skip
"""How pictures change, in the order of `Colour`'s fields."""
