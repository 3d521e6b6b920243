"""AlexNet and what OWT made of it."""

from __future__ import annotations

from mpicnn.layers import LRN, Conv, MaxPool
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named
from mpicnn.models.zoo.parts import LRN_2012, LRN_OWT, classifier, conv


def alexnet_owt(conv4: int, input_shape: Shape, classes: int) -> list[Named]:
    """Build the one-tower network of OWT for 224x224 crops, with `conv4` maps in conv4.

    OWT's text has 64-192-384-384-256 maps, the author's code (cuda-convnet2,
    `layers-imagenet-1gpu.cfg`) 256 in conv4. That code lets the last window of conv1 overhang the
    image instead of padding it; padding 2 gives the same 55x55 maps. Its LRN is the one here:
    5 channels, scale 1e-4 over the sum's mean, power 0.75, constant 2.
    """
    return _alexnet((64, 192, 384, conv4, 256), 1, LRN_OWT, classes)


def alexnet(input_shape: Shape, classes: int) -> list[Named]:
    """Build the two-tower network of Krizhevsky, Sutskever and Hinton (2012).

    Convolutions 96-256-384-384-256, the second, fourth and fifth in two groups that do not see
    each other, as the paper divided them over two GPUs. For 224x224 crops, which padding 2 brings
    to the paper's 55x55 maps (227x227 without padding is the other common reading).
    """
    return _alexnet((96, 256, 384, 384, 256), 2, LRN_2012, classes)


def alexnet_cifar(input_shape: Shape, classes: int) -> list[Named]:
    """Build a network of OWT's shape, small enough to try things out on images of 32x32 or 28x28.

    Five convolutions 16-32-48-32-32, the first of 5x5 with stride 1, the others of 3x3, LRN after
    the first two, 3x3/2 max pools whose last window may overhang the image, and two hidden fully
    connected layers of 512 with dropout 0.5. As in OWT most weights (93 % for 3x32x32 and 10
    classes) are fully connected and most of the work is in the convolutions.
    """
    pool = MaxPool(3, 2, ceil_mode=True)
    return [
        *conv(1, Conv(16, 5, padding=2)),
        ("norm1", LRN_OWT),
        ("pool1", pool),
        *conv(2, Conv(32, 3, padding=1)),
        ("norm2", LRN_OWT),
        ("pool2", pool),
        *conv(3, Conv(48, 3, padding=1)),
        *conv(4, Conv(32, 3, padding=1)),
        *conv(5, Conv(32, 3, padding=1)),
        ("pool5", pool),
        *classifier(6, 512, classes),
    ]


def _alexnet(widths: tuple[int, ...], groups: int, norm: LRN, classes: int) -> list[Named]:
    """Build what the networks of 2012 and of OWT share."""
    o1, o2, o3, o4, o5 = widths
    return [
        *conv(1, Conv(o1, 11, 4, padding=2)),
        ("norm1", norm),
        ("pool1", MaxPool(3, 2)),
        *conv(2, Conv(o2, 5, padding=2, groups=groups)),
        ("norm2", norm),
        ("pool2", MaxPool(3, 2)),
        *conv(3, Conv(o3, 3, padding=1)),
        *conv(4, Conv(o4, 3, padding=1, groups=groups)),
        *conv(5, Conv(o5, 3, padding=1, groups=groups)),
        ("pool5", MaxPool(3, 2)),
        *classifier(6, 4096, classes),
    ]
