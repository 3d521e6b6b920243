"""The networks that have names.

Every builder takes the shape of an image (c, h, w) and the number of classes and returns
(name, layer) pairs. A number in a name counts the layers with weights, as in the literature: fc6
is the sixth. Layers without weights share the number of the layer before them. Weights start as He
et al. (2015) have it and biases at 0, whatever the papers did, unless a builder says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from mpicnn.layers import LRN, AvgPool, Conv, Dropout, Flatten, Linear, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named

Builder = Callable[[Shape, int], list[Named]]


def default(input_shape: Shape, classes: int) -> list[Named]:
    """Build a small, quick network for 28x28 grey images: two convolutions, 128 hidden units."""
    return [
        *_conv(1, Conv(16, 5, padding=2)),
        ("pool1", MaxPool(2)),
        *_conv(2, Conv(32, 5)),
        ("pool2", MaxPool(2)),
        ("flatten", Flatten()),
        *_fc(3, Linear(128)),
        ("fc4", Linear(classes)),
    ]


def lenet5(input_shape: Shape, classes: int) -> list[Named]:
    """Build LeNet-5 (LeCun et al. 1998), modernised.

    Its sizes (6 and 16 maps, 120, 84) are the published ones, but ReLU replaces the scaled tanh,
    max pooling the trained subsampling, a full second convolution the partial connection table,
    and a fully connected layer under softmax cross-entropy the RBF outputs. Images under 32 pixels
    are padded by 2 on each side, as the paper set its 28x28 digits in 32x32 fields. C5 is a fully
    connected layer, which on the paper's input is the same as its 5x5 convolution.
    """
    padding = 2 if min(input_shape[1:]) < 32 else 0
    return [
        *_conv(1, Conv(6, 5, padding=padding)),
        ("pool1", MaxPool(2)),
        *_conv(2, Conv(16, 5)),
        ("pool2", MaxPool(2)),
        ("flatten", Flatten()),
        *_fc(3, Linear(120)),
        *_fc(4, Linear(84)),
        ("fc5", Linear(classes)),
    ]


def marques(c1: int, c2: int, input_shape: Shape, classes: int) -> list[Named]:
    """Build the network of Marques, section 5.2, with `c1` and `c2` kernels.

    The paper says: convolution 5x5, normalization, pooling with stride 2, the same again, fully
    connected, softmax; kernels 50:500, 150:800, 300:1000, 500:1500; 32x32 images of CIFAR-10. It
    leaves open, and this chooses: padding 2 (so that the maps are 32x32, then 16x16), ReLU after
    each convolution, LRN across 5 channels with the settings of the 2012 network, max pooling of
    2x2 windows, and one fully connected layer straight to the classes.
    """
    return [
        *_conv(1, Conv(c1, 5, padding=2)),
        ("norm1", _LRN_2012),
        ("pool1", MaxPool(2)),
        *_conv(2, Conv(c2, 5, padding=2)),
        ("norm2", _LRN_2012),
        ("pool2", MaxPool(2)),
        ("flatten", Flatten()),
        ("fc3", Linear(classes)),
    ]


def cuda_convnet(input_shape: Shape, classes: int) -> list[Named]:
    """Build cuda-convnet's CIFAR-10 network, as its `layers-80sec.cfg` has it.

    Convolutions 32-32-64 of 5x5; 3x3/2 pools whose last window may overhang the image, the first
    max (with ReLU after it), the others average; fully connected 64, then the classes. The
    published deviations of the initial weights (0.0001, 0.01, 0.01, 0.1, 0.1) were chosen for
    images in 0 … 255 less their mean; images divided by their deviation start it slowly with
    them, so the initial weights are He's here.
    """
    mean = AvgPool(3, 2, ceil_mode=True)
    return [
        ("conv1", Conv(32, 5, padding=2)),
        ("pool1", MaxPool(3, 2, ceil_mode=True)),
        ("relu1", ReLU()),
        *_conv(2, Conv(32, 5, padding=2)),
        ("pool2", mean),
        *_conv(3, Conv(64, 5, padding=2)),
        ("pool3", mean),
        ("flatten", Flatten()),
        *_fc(4, Linear(64)),
        ("fc5", Linear(classes)),
    ]


def alexnet_owt(conv4: int, input_shape: Shape, classes: int) -> list[Named]:
    """Build the one-tower network of OWT for 224x224 crops, with `conv4` maps in conv4.

    OWT's text has 64-192-384-384-256 maps, the author's code (cuda-convnet2,
    `layers-imagenet-1gpu.cfg`) 256 in conv4. That code lets the last window of conv1 overhang the
    image instead of padding it; padding 2 gives the same 55x55 maps. Its LRN is the one here:
    5 channels, scale 1e-4 over the sum's mean, power 0.75, constant 2.
    """
    return _alexnet((64, 192, 384, conv4, 256), 1, _LRN_OWT, classes)


def alexnet(input_shape: Shape, classes: int) -> list[Named]:
    """Build the two-tower network of Krizhevsky, Sutskever and Hinton (2012).

    Convolutions 96-256-384-384-256, the second, fourth and fifth in two groups that do not see
    each other, as the paper divided them over two GPUs. For 224x224 crops, which padding 2 brings
    to the paper's 55x55 maps (227x227 without padding is the other common reading).
    """
    return _alexnet((96, 256, 384, 384, 256), 2, _LRN_2012, classes)


def alexnet_cifar(input_shape: Shape, classes: int) -> list[Named]:
    """Build a network of OWT's shape, small enough to try things out on images of 32x32 or 28x28.

    Five convolutions 16-32-48-32-32, the first of 5x5 with stride 1, the others of 3x3, LRN after
    the first two, 3x3/2 max pools whose last window may overhang the image, and two hidden fully
    connected layers of 512 with dropout 0.5. As in OWT most weights (93 % for 3x32x32 and 10
    classes) are fully connected and most of the work is in the convolutions.
    """
    pool = MaxPool(3, 2, ceil_mode=True)
    return [
        *_conv(1, Conv(16, 5, padding=2)),
        ("norm1", _LRN_OWT),
        ("pool1", pool),
        *_conv(2, Conv(32, 3, padding=1)),
        ("norm2", _LRN_OWT),
        ("pool2", pool),
        *_conv(3, Conv(48, 3, padding=1)),
        *_conv(4, Conv(32, 3, padding=1)),
        *_conv(5, Conv(32, 3, padding=1)),
        ("pool5", pool),
        *_classifier(6, 512, classes),
    ]


def vgg11(input_shape: Shape, classes: int) -> list[Named]:
    """Build configuration A of Simonyan and Zisserman (2014), for images of 32x32 and larger."""
    layers: list[Named] = []
    blocks = ((64,), (128,), (256, 256), (512, 512), (512, 512))
    number = 0
    for block in blocks:
        for o in block:
            number += 1
            layers += _conv(number, Conv(o, 3, padding=1))
        layers.append((f"pool{number}", MaxPool(2)))
    return [*layers, *_classifier(number + 1, 4096, classes)]


def _alexnet(widths: tuple[int, ...], groups: int, norm: LRN, classes: int) -> list[Named]:
    """Build what the networks of 2012 and of OWT share."""
    o1, o2, o3, o4, o5 = widths
    return [
        *_conv(1, Conv(o1, 11, 4, padding=2)),
        ("norm1", norm),
        ("pool1", MaxPool(3, 2)),
        *_conv(2, Conv(o2, 5, padding=2, groups=groups)),
        ("norm2", norm),
        ("pool2", MaxPool(3, 2)),
        *_conv(3, Conv(o3, 3, padding=1)),
        *_conv(4, Conv(o4, 3, padding=1, groups=groups)),
        *_conv(5, Conv(o5, 3, padding=1, groups=groups)),
        ("pool5", MaxPool(3, 2)),
        *_classifier(6, 4096, classes),
    ]


def _classifier(first: int, width: int, classes: int) -> list[Named]:
    """Build the width-width-classes segment, dropout 0.5 after the hidden layers.

    The last layer starts with the deviation 0.01 that the papers use throughout, so that the first
    loss is near log(classes); the others start from He's weights.
    """
    return [
        ("flatten", Flatten()),
        *_fc(first, Linear(width)),
        (f"drop{first}", Dropout(0.5)),
        *_fc(first + 1, Linear(width)),
        (f"drop{first + 1}", Dropout(0.5)),
        (f"fc{first + 2}", Linear(classes, init=0.01)),
    ]


def _conv(number: int, conv: Conv) -> list[Named]:
    return [(f"conv{number}", conv), (f"relu{number}", ReLU())]


def _fc(number: int, linear: Linear) -> list[Named]:
    return [(f"fc{number}", linear), (f"relu{number}", ReLU())]


# The paper of 2012 multiplies the window's sum of squares by 1e-4; LRN's alpha is divided by size.
_LRN_2012 = LRN(5, alpha=5e-4, beta=0.75, k=2.0)
_LRN_OWT = LRN(5, alpha=1e-4, beta=0.75, k=2.0)

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
