"""The network of Szegedy et al. (2015), "Going deeper with convolutions"."""

from __future__ import annotations

from mpicnn.layers import BatchNorm, Concat, Conv, MaxPool
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.parts import SMALL, mean_classifier, normalised

# 1x1; 1x1 before 3x3, 3x3; 1x1 before "5x5", "5x5"; 1x1 behind the pool: table 1 of the paper
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# what follows these modules
_POOLS = {"3b": MaxPool(3, 2, ceil_mode=True), "4e": MaxPool(2, 2, ceil_mode=True)}


def googlenet(input_shape: Shape, classes: int) -> list[Node]:
    """Build GoogLeNet as torchvision has it, for 224x224 crops, without the auxiliary classifiers.

    Differences from the paper are torchvision's: batch norm (eps 0.001) behind every convolution
    and none of its LRN, 3x3 in place of the 5x5 convolutions, a last pool of 2x2, dropout 0.2.
    All weights start with the deviation 0.01, as there.
    """
    pool = MaxPool(3, 2, ceil_mode=True)
    layers: list[Node] = [
        *_unit("conv1", 64, 7, 2),
        ("pool1", pool),
        *_unit("conv2", 64, 1),
        *_unit("conv3", 192, 3),
        ("pool3", pool),
    ]
    for name, widths in _INCEPTIONS.items():
        layers += _inception(f"inception{name}", layers[-1][0], widths)
        if name in _POOLS:
            layers.append((f"pool{name}", _POOLS[name]))
    return [*layers, *mean_classifier(classes, dropout=0.2)]


def _inception(name: str, reads: str, widths: tuple[int, ...]) -> list[Node]:
    """Return an Inception module: four branches side by side, and their maps together."""
    ones, before3, threes, before5, fives, pooled = widths
    branches = (
        _unit(f"{name}_1x1", ones, 1, 1, reads),
        [*_unit(f"{name}_3x3_reduce", before3, 1, 1, reads), *_unit(f"{name}_3x3", threes, 3)],
        [*_unit(f"{name}_5x5_reduce", before5, 1, 1, reads), *_unit(f"{name}_5x5", fives, 3)],
        [
            (f"{name}_pool", MaxPool(3, 1, padding=1, ceil_mode=True), (reads,)),
            *_unit(f"{name}_pool_1x1", pooled, 1),
        ],
    )
    layers = [node for branch in branches for node in branch]
    return [*layers, (f"{name}_concat", Concat(), tuple(branch[-1][0] for branch in branches))]


def _unit(name: str, o: int, kernel: int, stride: int = 1, *reads: str) -> list[Node]:
    conv = Conv(o, kernel, stride, kernel // 2, bias=False, init=SMALL)
    return normalised(name, conv, *reads, norm=BatchNorm(eps=1e-3))
