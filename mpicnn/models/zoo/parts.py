"""Put together what several networks are made of."""

from __future__ import annotations

from mpicnn.layers import LRN, Conv, Dropout, Flatten, Linear, ReLU
from mpicnn.models.entry import Named

SMALL = 0.01
"""The deviation of the weights of last layers, so that the first loss is near log(classes)."""

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
