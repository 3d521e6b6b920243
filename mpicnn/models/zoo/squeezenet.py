"""SqueezeNet (Iandola et al. 2016)."""

from __future__ import annotations

from mpicnn.layers import Concat, Conv, Dropout, Flatten, GlobalAvgPool, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.parts import SMALL

# maps of the 1x1 that squeezes, and of each of the two that expand
_FIRES = (
    (16, 64),
    (16, 64),
    (32, 128),
    (32, 128),
    (48, 192),
    (48, 192),
    (64, 256),
    (64, 256),
)


def squeezenet(input_shape: Shape, classes: int) -> list[Node]:
    """Build SqueezeNet 1.1 of the authors' repository, for 224x224 crops, without batch norm.

    It needs 2.4 times less work than version 1.0, the paper's. There is no fully connected layer:
    the last convolution has a map per class, and the mean of each is the answer; it starts with
    the deviation 0.01, the others as He has it.
    """
    pool = MaxPool(3, 2, ceil_mode=True)
    layers: list[Node] = [("conv1", Conv(64, 3, 2)), ("relu1", ReLU()), ("pool1", pool)]
    for number, (squeeze, expand) in enumerate(_FIRES, start=2):
        layers += _fire(f"fire{number}", squeeze, expand)
        if number in (3, 5):
            layers.append((f"pool{number}", pool))
    return [
        *layers,
        ("drop9", Dropout(0.5)),
        ("conv10", Conv(classes, 1, init=SMALL)),
        ("relu10", ReLU()),
        ("meanpool", GlobalAvgPool()),
        ("flatten", Flatten()),
    ]


def _fire(name: str, squeeze: int, expand: int) -> list[Node]:
    """Return a Fire module: a 1x1 convolution to few maps, 1x1 and 3x3 ones on them, together."""
    few = f"{name}_squeeze_relu"
    return [
        (f"{name}_squeeze", Conv(squeeze, 1)),
        (few, ReLU()),
        (f"{name}_1x1", Conv(expand, 1)),
        (f"{name}_1x1_relu", ReLU()),
        (f"{name}_3x3", Conv(expand, 3, padding=1), (few,)),
        (f"{name}_3x3_relu", ReLU()),
        (f"{name}_concat", Concat(), (f"{name}_1x1_relu", f"{name}_3x3_relu")),
    ]
