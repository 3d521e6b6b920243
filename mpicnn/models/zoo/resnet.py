"""Residual networks (He, Zhang, Ren and Sun 2016).

block3_2 is the second block of the stage that table 1 of the paper calls conv3_x. Where a block
changes the size, its shortcut is a 1x1 convolution with batch norm: option B of the paper.
Convolutions start as torchvision has it, by He's rule for outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpicnn.layers import Add, BatchNorm, Conv, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.parts import by_outputs, mean_classifier, normalised

_START_AT_ZERO = BatchNorm(init="zeros")


def resnet(counts: Sequence[int], bottleneck: bool, input_shape: Shape, classes: int) -> list[Node]:
    """Build the network of the paper's table 1 with `counts` blocks a stage, for 224x224 crops.

    A block is two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1. Where a bottleneck
    halves the image, its 3x3 convolution does: version 1.5, as in torchvision; in the paper it is
    the first 1x1. The last batch norm of every block starts with gamma 0, and the fully connected
    layer with the deviation 0.01 (Goyal et al. 2017, section 5.1).
    """
    layers: list[Node] = [
        *normalised("conv1", _conv(64, 7, 2)),
        ("pool1", MaxPool(3, 2, padding=1)),
    ]
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), counts, strict=True)):
        for block in range(count):
            stride = 2 if stage and not block else 1
            convs = (
                (_conv(width, 1), _conv(width, 3, stride), _conv(4 * width, 1))
                if bottleneck
                else (_conv(width, 3, stride), _conv(width, 3))
            )
            fits = block > 0 or (stage == 0 and not bottleneck)
            shortcut = None if fits else _conv(convs[-1].o, 1, stride)
            name = f"block{stage + 2}_{block + 1}"
            layers += _block(name, layers[-1][0], convs, shortcut, _START_AT_ZERO)
    return [*layers, *mean_classifier(classes)]


def cifar_resnet(count: int, input_shape: Shape, classes: int) -> list[Node]:
    """Build the network of the paper's section 4.2 with `count` blocks a stage, for 32x32 images.

    It has 6 `count` + 2 layers, in stages of 16, 32 and 64 maps. The paper's shortcuts on CIFAR-10
    pad channels with zeros (option A); the convolutions here have 2,752 parameters in all. Every
    gamma starts at 1.
    """
    layers = normalised("conv1", _conv(16, 3))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(count):
            halves = stage > 0 and block == 0
            convs = (_conv(width, 3, 2 if halves else 1), _conv(width, 3))
            shortcut = _conv(width, 1, 2) if halves else None
            name = f"block{stage + 1}_{block + 1}"
            layers += _block(name, layers[-1][0], convs, shortcut, BatchNorm())
    return [*layers, *mean_classifier(classes)]


def _block(
    name: str, reads: str, convs: Sequence[Conv], shortcut: Conv | None, end: BatchNorm
) -> list[Node]:
    """Return a block whose convolutions end in the batch norm `end`, and what it adds them to."""
    *inner, last = enumerate(convs, start=1)
    layers: list[Node] = []
    for number, conv in inner:
        layers += normalised(f"{name}_conv{number}", conv, *(() if layers else (reads,)))
    layers += normalised(f"{name}_conv{last[0]}", last[1], norm=end, then=None)
    ends = [layers[-1][0], reads]
    if shortcut is not None:
        layers += normalised(f"{name}_shortcut", shortcut, reads, then=None)
        ends[1] = layers[-1][0]
    return [*layers, (f"{name}_add", Add(), ends), (f"{name}_relu", ReLU())]


def _conv(o: int, kernel: int, stride: int = 1) -> Conv:
    """Return a convolution that keeps the image's size, or halves it, for batch norm behind it."""
    return Conv(o, kernel, stride, kernel // 2, bias=False, init=by_outputs(o, kernel))
