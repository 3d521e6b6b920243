"""The networks that have names: a file per family.

Every builder takes the shape of an image (c, h, w) and the number of classes and returns
(name, layer) pairs. A number in a name counts the layers with weights, as in the literature: fc6
is the sixth. Layers without weights share the number of the layer before them. Weights start as He
et al. (2015) have it and biases at 0, whatever the papers did, unless a builder says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named
from mpicnn.models.zoo.alexnet import alexnet, alexnet_cifar, alexnet_owt
from mpicnn.models.zoo.small import cuda_convnet, default, lenet5, marques
from mpicnn.models.zoo.vgg import vgg11

Builder = Callable[[Shape, int], list[Named]]

ZOO: Mapping[str, Builder] = MappingProxyType(
    {
        "default": default,
        "lenet5": lenet5,
        "marques-50-500": partial(marques, 50, 500),
        "marques-150-800": partial(marques, 150, 800),
        "marques-300-1000": partial(marques, 300, 1000),
        "marques-500-1500": partial(marques, 500, 1500),
        "cuda-convnet": cuda_convnet,
        "alexnet-owt": partial(alexnet_owt, 384),
        "alexnet-owt-code": partial(alexnet_owt, 256),
        "alexnet": alexnet,
        "alexnet-cifar": alexnet_cifar,
        "vgg11": vgg11,
    }
)
