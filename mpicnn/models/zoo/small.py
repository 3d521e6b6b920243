"""Small networks: for digits, for CIFAR-10, for trying things out."""

from __future__ import annotations

from mpicnn.layers import AvgPool, Conv, Flatten, Linear, MaxPool, ReLU
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Named
from mpicnn.models.zoo.parts import LRN_2012, conv, fc


def default(input_shape: Shape, classes: int) -> list[Named]:
    """Build a small, quick network for 28x28 grey images: two convolutions, 128 hidden units."""
    return [
        *conv(1, Conv(16, 5, padding=2)),
        ("pool1", MaxPool(2)),
        *conv(2, Conv(32, 5)),
        ("pool2", MaxPool(2)),
        ("flatten", Flatten()),
        *fc(3, Linear(128)),
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
        *conv(1, Conv(6, 5, padding=padding)),
        ("pool1", MaxPool(2)),
        *conv(2, Conv(16, 5)),
        ("pool2", MaxPool(2)),
        ("flatten", Flatten()),
        *fc(3, Linear(120)),
        *fc(4, Linear(84)),
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
        *conv(1, Conv(c1, 5, padding=2)),
        ("norm1", LRN_2012),
        ("pool1", MaxPool(2)),
        *conv(2, Conv(c2, 5, padding=2)),
        ("norm2", LRN_2012),
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
        *conv(2, Conv(32, 5, padding=2)),
        ("pool2", mean),
        *conv(3, Conv(64, 5, padding=2)),
        ("pool3", mean),
        ("flatten", Flatten()),
        *fc(4, Linear(64)),
        ("fc5", Linear(classes)),
    ]
