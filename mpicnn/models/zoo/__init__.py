"""The networks that have names: a file per family.

Every builder takes the shape of an image (c, h, w) and the number of classes and returns
(name, layer) or (name, layer, names of what it reads). In chains a number in a name counts the
layers with weights, as in the literature: fc6 is the sixth; layers without weights share the number
of the layer before them. Networks with branches name their blocks. Weights start as He et al.
(2015) have it and biases at 0, whatever the papers did, unless a builder says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.alexnet import alexnet, alexnet_cifar, alexnet_owt
from mpicnn.models.zoo.densenet import densenet
from mpicnn.models.zoo.googlenet import googlenet
from mpicnn.models.zoo.mobilenet import mobilenet_v2
from mpicnn.models.zoo.resnet import cifar_resnet, resnet
from mpicnn.models.zoo.small import cuda_convnet, default, lenet5, marques
from mpicnn.models.zoo.squeezenet import squeezenet
from mpicnn.models.zoo.vgg import vgg

Builder = Callable[[Shape, int], Sequence[Node]]

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
        "vgg11": partial(vgg, (1, 1, 2, 2, 2), False),
        "vgg16": partial(vgg, (2, 2, 3, 3, 3), False),
        "vgg16-bn": partial(vgg, (2, 2, 3, 3, 3), True),
        "resnet20": partial(cifar_resnet, 3),
        "resnet56": partial(cifar_resnet, 9),
        "resnet18": partial(resnet, (2, 2, 2, 2), False),
        "resnet34": partial(resnet, (3, 4, 6, 3), False),
        "resnet50": partial(resnet, (3, 4, 6, 3), True),
        "googlenet": googlenet,
        "densenet121": partial(densenet, (6, 12, 24, 16)),
        "mobilenet-v2": mobilenet_v2,
        "squeezenet": squeezenet,
    }
)

GRAY, CIFAR, IMAGENET = ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 224, 224), 1000)
_MADE_FOR = {
    GRAY: ("default", "lenet5"),
    CIFAR: (
        "marques-50-500", "marques-150-800", "marques-300-1000", "marques-500-1500",
        "cuda-convnet", "alexnet-cifar", "resnet20", "resnet56",
    ),
}  # fmt: skip


def made_for(name: str) -> tuple[Shape, int]:
    """Return the image shape and the number of classes for which a network with a name was made."""
    return next((data for data, names in _MADE_FOR.items() if name in names), IMAGENET)
