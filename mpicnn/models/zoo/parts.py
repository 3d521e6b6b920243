"""Put together what several networks are made of."""

from __future__ import annotations

import math

from mpicnn.layers import LRN, BatchNorm, Conv, Dropout, Flatten, GlobalAvgPool, Linear, ReLU
from mpicnn.layers.base import Layer
from mpicnn.models.entry import Named, Node

SMALL = 0.01
"""The deviation of the weights of last layers, so that the first loss is near log(classes)."""

_NORM, _RELU = BatchNorm(), ReLU()

# The paper of 2012 multiplies the window's sum of squares by 1e-4; LRN's alpha is divided by size.
LRN_2012 = LRN(5, alpha=5e-4, beta=0.75, k=2.0)
LRN_OWT = LRN(5, alpha=1e-4, beta=0.75, k=2.0)


def conv(number: int, layer: Conv) -> list[Named]:
    """Return a numbered convolution and its ReLU."""
    return [(f"conv{number}", layer), (f"relu{number}", ReLU())]


def fc(number: int, linear: Linear) -> list[Named]:
    """Return a numbered fully connected layer and its ReLU."""
    return [(f"fc{number}", linear), (f"relu{number}", ReLU())]


def classifier(first: int, width: int, classes: int) -> list[Named]:
    """Return the width-width-classes segment, dropout 0.5 after the hidden layers.

    The last layer starts with the deviation 0.01 that the papers use throughout, so that the first
    loss is near log(classes); the others start from He's weights.
    """
    return [
        ("flatten", Flatten()),
        *fc(first, Linear(width)),
        (f"drop{first}", Dropout(0.5)),
        *fc(first + 1, Linear(width)),
        (f"drop{first + 1}", Dropout(0.5)),
        (f"fc{first + 2}", Linear(classes, init=SMALL)),
    ]


def normalised(
    name: str, layer: Conv, *reads: str, norm: BatchNorm = _NORM, then: Layer | None = _RELU
) -> list[Node]:
    """Return a convolution NAME, its batch norm NAME_bn, and the activation behind, NAME_relu.

    `reads` names what the convolution reads where that is not the layer before it; `then` is None
    where nothing follows.
    """
    end: list[Node] = [] if then is None else [(f"{name}_relu", then)]
    return [(name, layer, reads), (f"{name}_bn", norm), *end]


def mean_classifier(classes: int, dropout: float = 0.0) -> list[Node]:
    """Return the mean over space and one fully connected layer, dropout before it if wanted."""
    dropped: list[Node] = [("drop", Dropout(dropout))] if dropout else []
    return [
        ("meanpool", GlobalAvgPool()),
        ("flatten", Flatten()),
        *dropped,
        ("fc", Linear(classes, init=SMALL)),
    ]


def by_outputs(o: int, kernel: int) -> float:
    """Return the deviation of He et al. (2015) by outputs, sqrt(2 / (o * kernel**2))."""
    return math.sqrt(2 / (o * kernel**2))
