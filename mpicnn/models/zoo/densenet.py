"""Densely connected networks (Huang, Liu, van der Maaten and Weinberger 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from mpicnn.layers import AvgPool, BatchNorm, Concat, Conv, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.parts import mean_classifier, normalised

GROWTH, FIRST, BOTTLENECK = 32, 64, 4


def densenet(counts: Sequence[int], input_shape: Shape, classes: int) -> list[Node]:
    """Build DenseNet-BC of growth 32 with `counts` layers a block, for 224x224 crops.

    Every layer of a block adds 32 maps to those of all layers before it. Each concatenation takes
    the one before it and the new maps, the same maps in the same order as all at once. Weights
    start as He has it, as in torchvision, the fully connected layer with the deviation 0.01.
    """
    layers: list[Node] = [
        *normalised("conv1", Conv(FIRST, 7, 2, 3, bias=False)),
        ("pool1", MaxPool(3, 2, padding=1)),
    ]
    maps = FIRST
    for block, count in enumerate(counts, start=1):
        for number in range(1, count + 1):
            layers += _dense(f"dense{block}_{number}", layers[-1][0])
        maps += count * GROWTH
        if block < len(counts):
            maps //= 2
            name = f"transition{block}"
            layers += [
                *_before(name, Conv(maps, 1, bias=False)),
                (f"{name}_pool", AvgPool(2)),
            ]
    return [*layers, ("last_bn", BatchNorm()), ("last_relu", ReLU()), *mean_classifier(classes)]


def _dense(name: str, reads: str) -> list[Node]:
    """Return one layer of a block: 1x1 and 3x3 convolutions whose maps join those it reads."""
    return [
        *_before(f"{name}_1x1", Conv(BOTTLENECK * GROWTH, 1, bias=False), reads),
        *_before(f"{name}_3x3", Conv(GROWTH, 3, padding=1, bias=False)),
        (f"{name}_concat", Concat(), (reads, f"{name}_3x3")),
    ]


def _before(name: str, conv: Conv, *reads: str) -> list[Node]:
    """Return a convolution with batch norm and ReLU in front of it."""
    return [(f"{name}_bn", BatchNorm(), reads), (f"{name}_relu", ReLU()), (name, conv)]
