"""MobileNetV2 (Sandler, Howard, Zhu, Zhmoginov and Chen 2018)."""

from __future__ import annotations

from mpicnn.layers import Add, Conv, ReLU6
from mpicnn.layers.base import Shape
from mpicnn.models.entry import Node
from mpicnn.models.zoo.parts import by_outputs, mean_classifier, normalised

# expansion, maps, blocks, stride of the first block: table 2 of the paper
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(input_shape: Shape, classes: int) -> list[Node]:
    """Build the network of the paper's table 2 at width 1, for 224x224 crops.

    block2_1 is the first block of table 2's second row of blocks. Dropout 0.2, as torchvision has
    it. Weights start as there, by He's rule for outputs, the fully connected layer with the
    deviation 0.01.
    """
    maps = 32
    layers = _unit("conv1", maps, 3, 2)
    for stage, (expansion, o, count, first_stride) in enumerate(_STAGES, start=1):
        for block in range(1, count + 1):
            stride = first_stride if block == 1 else 1
            name, reads = f"block{stage}_{block}", layers[-1][0]
            layers += _block(name, reads, (maps, expansion * maps, o), stride)
            maps = o
    return [*layers, *_unit("conv_last", 1280, 1), *mean_classifier(classes, dropout=0.2)]


def _block(name: str, reads: str, maps: tuple[int, int, int], stride: int) -> list[Node]:
    """Return an inverted residual: 1x1 to more maps, 3x3 on each by itself, 1x1 back to few.

    `maps` are those read, those between and those given. The input is added where it fits; a block
    that does not expand has no first convolution.
    """
    before, between, after = maps
    layers = _unit(f"{name}_expand", between, 1, 1, 1, reads) if between != before else []
    layers += _unit(f"{name}_depthwise", between, 3, stride, between)
    project = Conv(after, 1, bias=False, init=by_outputs(after, 1))
    layers += normalised(f"{name}_project", project, then=None)
    if stride == 1 and before == after:
        layers.append((f"{name}_add", Add(), (reads, layers[-1][0])))
    return layers


def _unit(
    name: str, o: int, kernel: int, stride: int = 1, groups: int = 1, *reads: str
) -> list[Node]:
    init = by_outputs(o, kernel)
    conv = Conv(o, kernel, stride, kernel // 2, groups=groups, bias=False, init=init)
    return normalised(name, conv, *reads, then=ReLU6())
