"""The networks of Simonyan and Zisserman (2014)."""

from __future__ import annotations

from mpicnn.layers import Conv, MaxPool
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named
from mpicnn.models.zoo.parts import classifier, conv


def vgg11(input_shape: Shape, classes: int) -> list[Named]:
    """Build configuration A of Simonyan and Zisserman (2014), for images of 32x32 and larger."""
    layers: list[Named] = []
    blocks = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    number = 0
    for block in blocks:
        for o in block:
            number += 1
            layers += conv(number, Conv(o, 3, padding=1))
        layers.append((f"pool{number}", MaxPool(2)))
    return [*layers, *classifier(number + 1, 4096, classes)]
