"""The networks of Simonyan and Zisserman (2014)."""

from __future__ import annotations

from collections.abc import Sequence

from mpicnn.layers import BatchNorm, Conv, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named
from mpicnn.models.zoo.parts import classifier


def vgg(counts: Sequence[int], norm: bool, input_shape: Shape, classes: int) -> list[Named]:
    """Build a configuration of the paper's table 1, for images of 32x32 and larger.

    Five blocks of `counts` 3x3 convolutions, a 2x2 pool behind each: configuration A (vgg11) has
    (1, 1, 2, 2, 2), D (vgg16) has (2, 2, 3, 3, 3). With `norm` there is batch norm behind every
    convolution, as in torchvision, whose convolutions keep their biases then.
    """
    layers: list[Named] = []
    number = 0
    for o, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        for _ in range(count):
            number += 1
            layers.append((f"conv{number}", Conv(o, 3, padding=1)))
            if norm:
                layers.append((f"bn{number}", BatchNorm()))
            layers.append((f"relu{number}", ReLU()))
        layers.append((f"pool{number}", MaxPool(2)))
    return [*layers, *classifier(number + 1, 4096, classes)]
