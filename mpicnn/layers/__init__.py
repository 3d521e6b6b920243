"""The layers that networks are made of. Each computes on local arrays and knows nothing of MPI."""

from mpicnn.layers.activation import (
    GELU,
    HardSwish,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from mpicnn.layers.base import Array, Context, Layer, Param, Shape
from mpicnn.layers.conv import Conv
from mpicnn.layers.dropout import Dropout
from mpicnn.layers.flatten import Flatten
from mpicnn.layers.join import Add, Concat, Multiply
from mpicnn.layers.linear import Linear
from mpicnn.layers.loss import MixedLabels, SoftmaxCrossEntropy
from mpicnn.layers.norm import LRN, BatchNorm, GroupNorm
from mpicnn.layers.pool import AvgPool, GlobalAvgPool, MaxPool

__all__ = [
    "GELU",
    "LRN",
    "Add",
    "Array",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GroupNorm",
    "HardSwish",
    "Layer",
    "LeakyReLU",
    "Linear",
    "MaxPool",
    "MixedLabels",
    "Multiply",
    "Param",
    "ReLU",
    "ReLU6",
    "Context",
    "Shape",
    "SiLU",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "Tanh",
]
