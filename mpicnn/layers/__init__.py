"""The layers that networks are made of. Each computes on local arrays and knows nothing of MPI."""

from mpicnn.layers.activation import ReLU
from mpicnn.layers.base import Array, Context, Layer, Param, Shape
from mpicnn.layers.conv import Conv
from mpicnn.layers.dropout import Dropout
from mpicnn.layers.flatten import Flatten
from mpicnn.layers.linear import Linear
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.layers.norm import LRN, BatchNorm
from mpicnn.layers.pool import AvgPool, MaxPool

__all__ = [
    "LRN",
    "Array",
    "AvgPool",
    "BatchNorm",
    "Conv",
    "Dropout",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool",
    "Param",
    "ReLU",
    "Context",
    "Shape",
    "SoftmaxCrossEntropy",
]
