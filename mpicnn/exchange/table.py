"""The operators of ONNX that are read, and what each becomes: one table, a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mpicnn import layers as kinds
from mpicnn.exchange import arithmetic, operators, shapes
from mpicnn.exchange.arithmetic import Reader, plain


@dataclass(frozen=True)
class Operator:
    """Hold the function that reads an operator, and two texts: its layer, and its refused forms."""

    read: Reader
    becomes: str
    refused: str = ""


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "Conv": Operator(
            operators.conv, "`conv`; with `auto_pad` too", "other than two spatial axes"
        ),
        "Gemm": Operator(operators.gemm, "`linear`", "`transA`; a matrix that is no constant"),
        "MatMul": Operator(
            operators.matmul, "`linear`; `Add` behind it: its bias", "a matrix that is no constant"
        ),
        "BatchNormalization": Operator(operators.batch_norm, "`batchnorm`", "`training_mode`"),
        "GroupNormalization": Operator(operators.group_norm, "`groupnorm`"),
        "InstanceNormalization": Operator(
            operators.instance_norm, "`groupnorm`, a group per channel or as `Reshape` says"
        ),
        "LRN": Operator(operators.lrn, "`lrn`", "even sizes"),
        "MaxPool": Operator(operators.max_pool, "`maxpool`", "`Indices`"),
        "AveragePool": Operator(operators.avg_pool, "`avgpool`", "dilation"),
        "GlobalAveragePool": Operator(operators.global_mean, "`globalavgpool`"),
        "GlobalMaxPool": Operator(operators.global_max, "`maxpool` of the image's size"),
        "ReduceMean": Operator(
            shapes.mean, "`globalavgpool`, `flatten`", "other axes than height and width"
        ),
        "Relu": Operator(plain(kinds.ReLU()), "`relu`"),
        "Clip": Operator(arithmetic.clip, "`relu6`, `relu`", "other bounds"),
        "LeakyRelu": Operator(arithmetic.leaky_relu, "`leakyrelu`", "slopes below 0"),
        "PRelu": Operator(arithmetic.leaky_relu, "`leakyrelu`", "slopes that differ"),
        "Sigmoid": Operator(
            plain(kinds.Sigmoid()), "`sigmoid`; with `Mul` of what it reads, `silu`"
        ),
        "Tanh": Operator(plain(kinds.Tanh()), "`tanh`"),
        "HardSwish": Operator(plain(kinds.HardSwish()), "`hardswish`"),
        "HardSigmoid": Operator(
            arithmetic.hard_sigmoid, "with `Mul`, `hardswish`", "any other use: no layer does it"
        ),
        "Gelu": Operator(arithmetic.gelu, "`gelu`", "`approximate` by tanh"),
        "Erf": Operator(arithmetic.erf, "with `Div`, `Add`, `Mul`, `gelu`", "any other use"),
        "Add": Operator(
            arithmetic.total, "`add`; of a constant per channel, into the layer before it",
            "broadcasting; constants where no layer can take them",
        ),
        "Sum": Operator(arithmetic.total, "`add`", "broadcasting"),
        "Sub": Operator(arithmetic.difference, "of a constant per channel: as `Add`", "else"),
        "Mul": Operator(
            arithmetic.product, "`multiply`; of a constant per channel: as `Add`",
            "gates other than (n, c, 1, 1)",
        ),
        "Div": Operator(arithmetic.quotient, "by a constant per channel: as `Add`", "else"),
        "Concat": Operator(shapes.concat, "`concat`", "other axes than that of channels"),
        "Gather": Operator(
            shapes.gather, "with `Unsqueeze`, `Concat`: arithmetic on each channel of images",
            "any other use",
        ),
        "Unsqueeze": Operator(shapes.unsqueeze, "with `Gather`", "any other use"),
        "Flatten": Operator(shapes.flatten, "`flatten`", "`axis` other than 1"),
        "Reshape": Operator(
            shapes.reshape, "`flatten`; groups for `InstanceNormalization`", "other shapes"
        ),
        "Squeeze": Operator(shapes.squeeze, "`flatten` of images of 1 x 1", "other axes"),
        "Pad": Operator(
            shapes.pad, "padding of the `Conv` or `AveragePool` behind it",
            "other than zeros around images",
        ),
        "Dropout": Operator(arithmetic.dropout, "`dropout`"),
        "Identity": Operator(arithmetic.passed, "nothing"),
        "Cast": Operator(arithmetic.cast, "nothing", "to whole numbers"),
        "CastLike": Operator(arithmetic.cast, "nothing", "to whole numbers"),
        "Softmax": Operator(arithmetic.last_alone, "nothing, at the end", "elsewhere"),
        "LogSoftmax": Operator(arithmetic.last_alone, "nothing, at the end", "elsewhere"),
    }
)  # fmt: skip
"""All operators that are read; any other is refused by name."""
