"""What layers the operators of ONNX are that have weights or a window, or normalise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpicnn import layers as kinds
from mpicnn.errors import UserError
from mpicnn.exchange.values import Builder, Grouped, Node, Out, Padded, Value
from mpicnn.layers.pool import AvgPool, MaxPool
from mpicnn.ops.interface import Array
from mpicnn.ops.window import Window


def constant(node: Node, values: Sequence[Value | None], at: int, what: str) -> Array:
    """Return the input `at` of a node. Raises UserError where it is not a constant."""
    value = values[at] if at < len(values) else None
    if not isinstance(value, np.ndarray):
        raise node.refuse(f"its {what} is not a constant of the file")
    return value


def image(node: Node, out: Out) -> tuple[int, int]:
    """Return height and width. Raises UserError for what has other than two spatial axes."""
    if len(out.shape) != 3:
        raise node.refuse(f"it reads examples of shape {out.shape}, expected (c, h, w)")
    return out.shape[1], out.shape[2]


def sides(
    node: Node, space: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:  # fmt: skip
    """Return the padding that a node asks for: top, left, bottom, right, as ONNX has it."""
    auto = node.get("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(node.get("pads", (0,) * 4))
    if auto == "VALID":
        return [0] * 4
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.refuse(f"auto_pad is {auto}")
    fronts, ends = [], []
    for size, k, s, d in zip(space, kernel, stride, dilation, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        less, more = total // 2, total - total // 2
        fronts.append(less if auto == "SAME_UPPER" else more)
        ends.append(more if auto == "SAME_UPPER" else less)
    return fronts + ends


def ours(pads: Sequence[int]) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right for ONNX's top, left, bottom, right."""
    top, left, bottom, right = map(int, pads)
    return top, bottom, left, right


def moves(node: Node, out: Out, kernel: Sequence[int]) -> dict[str, Any]:
    """Return kernel, stride, padding and dilation of a node as our layers take them."""
    space = image(node, out)
    if len(kernel) != 2:
        raise node.refuse(f"its kernel has {len(kernel)} axes, expected 2")
    stride, dilation = (tuple(node.get(name, (1, 1))) for name in ("strides", "dilations"))
    pads = sides(node, space, kernel, stride, dilation)
    if min(pads) < 0:
        raise node.refuse(f"pads are {pads}, expected none below 0")
    return {
        "kernel": tuple(kernel), "stride": stride, "padding": ours(pads), "dilation": dilation,
    }  # fmt: skip


def padded(builder: Builder, node: Node, value: Value, kernel: Sequence[int]) -> _Windows:
    """Return how a node moves over a value, around which a Pad may have put zeros."""
    if not isinstance(value, Padded):
        out = builder.settle(value)
        return _Windows(out, moves(node, out, kernel), (0, 0, 0, 0))
    top, bottom, left, right = value.sides
    c, h, w = value.base.shape
    wide = replace(value.base, shape=(c, h + top + bottom, w + left + right))
    settings = moves(node, wide, kernel)
    pads = tuple(a + b for a, b in zip(settings["padding"], value.sides, strict=True))
    return _Windows(value.base, settings | {"padding": pads}, value.sides)


@dataclass(frozen=True)
class _Windows:
    """What is read, the settings of kernel, stride, padding and dilation, and the part of a Pad."""

    out: Out
    settings: dict[str, Any]
    more: tuple[int, ...]


def conv(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """Convolution; zeros that a Pad put in front of it are its padding."""
    assert values[0] is not None
    w = constant(node, values, 1, "kernel")
    found = padded(builder, node, values[0], node.get("kernel_shape", w.shape[2:]))
    arrays = {"w": w}
    if len(values) > 2 and values[2] is not None:
        arrays["b"] = constant(node, values, 2, "bias")
    groups = int(node.get("group", 1))
    layer = kinds.Conv(w.shape[0], **found.settings, groups=groups, bias="b" in arrays)
    return builder.put(node, layer, [found.out], arrays, node.inputs[1])


def gemm(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """A fully connected layer: x times a constant matrix, either way round, plus a constant."""
    node.expect(transA=0)
    assert values[0] is not None
    w = constant(node, values, 1, "matrix").astype(np.float64) * node.number("alpha", 1.0)
    w = w if node.get("transB", 0) else w.T
    arrays = {"w": w}
    if len(values) > 2 and values[2] is not None:
        b = constant(node, values, 2, "bias").astype(np.float64) * node.number("beta", 1.0)
        if b.size not in (1, w.shape[0]):
            raise node.refuse(f"its bias is of shape {b.shape}, expected ({w.shape[0]},)")
        arrays["b"] = np.broadcast_to(b.reshape(-1), (w.shape[0],))
    layer = kinds.Linear(w.shape[0], bias="b" in arrays)
    return builder.put(node, layer, [builder.settle(values[0])], arrays, node.inputs[1])


def matmul(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """A fully connected layer without bias; an Add of a constant behind it becomes its bias."""
    assert values[0] is not None
    w = constant(node, values, 1, "second matrix")
    if w.ndim != 2:
        raise node.refuse(f"its matrix is of shape {w.shape}, expected two axes")
    layer = kinds.Linear(w.shape[1], bias=False)
    return builder.put(node, layer, [builder.settle(values[0])], {"w": w.T}, node.inputs[1])


def batch_norm(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """Batch normalisation by its running statistics."""
    node.expect(training_mode=0, spatial=1)
    assert values[0] is not None
    keys = ("gamma", "beta", "mean", "var")
    arrays = {key: constant(node, values, at, key) for at, key in enumerate(keys, start=1)}
    momentum = round(1 - node.number("momentum", 0.9), 7)
    layer = kinds.BatchNorm(momentum=momentum, eps=node.number("epsilon", 1e-5))
    return builder.put(node, layer, [builder.settle(values[0])], arrays, node.inputs[1])


def group_norm(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """Group normalisation, with a factor for each channel or, before opset 21, for each group."""
    assert values[0] is not None
    out = builder.settle(values[0])
    factors = constant(node, values, 1, "scale"), constant(node, values, 2, "bias")
    layer = kinds.GroupNorm(int(node.get("num_groups")), node.number("epsilon", 1e-5))
    return _grouped(builder, node, out, layer, factors)


def instance_norm(builder: Builder, node: Node, values: Sequence[Value | None]) -> Value:
    """Group normalisation of one channel each, or, behind a Reshape, of the groups that it made."""
    assert values[0] is not None
    factors = constant(node, values, 1, "scale"), constant(node, values, 2, "B")
    eps, value = node.number("epsilon", 1e-5), values[0]
    if isinstance(value, Grouped) and value.eps is None:
        return replace(value, node=node, eps=eps, factors=factors)
    out = builder.settle(value)
    return _grouped(builder, node, out, kinds.GroupNorm(out.shape[0], eps), factors)


def regrouped(builder: Builder, value: Grouped) -> Out:
    """Return group normalisation after the Reshape that ends it."""
    assert value.eps is not None and value.factors is not None
    layer = kinds.GroupNorm(value.groups, value.eps)
    return _grouped(builder, value.node, value.base, layer, value.factors)


def _grouped(
    builder: Builder, node: Node, out: Out, layer: kinds.GroupNorm, factors: tuple[Array, Array]
) -> Out:
    """Add group normalisation; `factors`, gamma and beta, are for each channel or each group."""
    each = out.shape[0] // layer.groups
    gamma, beta = (
        np.repeat(array, each) if array.shape == (layer.groups,) else array for array in factors
    )
    return builder.put(node, layer, [out], {"gamma": gamma, "beta": beta}, node.inputs[1])


def lrn(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """Local response normalisation of an odd size."""
    assert values[0] is not None
    size = int(node.get("size"))
    if size % 2 == 0:
        raise node.refuse(f"size is {size}; of an even size the windows are others than ours")
    alpha, beta, k = (
        node.number(name, default)
        for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1))
    )
    layer = kinds.LRN(size, alpha, beta, k)
    return builder.put(node, layer, [builder.settle(values[0])])


def max_pool(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """The largest value of each window."""
    assert values[0] is not None
    if len(node.outputs) > 1 and node.outputs[1]:
        raise node.refuse("it gives places too")
    out = builder.settle(values[0])
    settings = moves(node, out, node.get("kernel_shape"))
    if settings["kernel"] == settings["stride"] == (1, 1) and not any(settings["padding"]):
        return out
    return _pool(builder, node, MaxPool, out, settings)


def avg_pool(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """The mean of each window; zeros that a Pad put in front of it are padding that counts."""
    assert values[0] is not None
    found = padded(builder, node, values[0], node.get("kernel_shape"))
    settings = dict(found.settings)
    if settings.pop("dilation") != (1, 1):
        raise node.refuse("dilations other than 1")
    counts = bool(node.get("count_include_pad", 0))
    if any(found.more) and settings["padding"] != found.more and not counts:
        raise node.refuse("padding that counts in the mean, and padding that does not")
    if settings["kernel"] == settings["stride"] == (1, 1) and not any(settings["padding"]):
        return found.out
    # without padding it says nothing; True is what our layers have by themselves
    settings["count_include_pad"] = counts or any(found.more) or not any(settings["padding"])
    return _pool(builder, node, AvgPool, found.out, settings)


def _pool(
    builder: Builder, node: Node, kind: type[MaxPool] | type[AvgPool], out: Out, settings: Any
) -> Out:
    """Add a pooling; padding behind the image that is too much for our layers is ceil_mode."""
    ceil = bool(node.get("ceil_mode", 0))
    try:
        layer = kind(**settings, ceil_mode=ceil)
    except UserError as error:
        top, bottom, left, right = settings["padding"]
        window = Window.of(
            settings["stride"], settings["padding"], settings.get("dilation", (1, 1))
        )
        wanted = window.pool_shape(out.shape[1:], settings["kernel"], ceil)
        try:
            less = settings | {"padding": (top, min(top, bottom), left, min(left, right))}
            layer = kind(**less, ceil_mode=True)
            same = layer.out_shape(out.shape)[1:] == wanted
        except UserError:
            same = False
        if not same or settings.get("count_include_pad"):
            raise node.refuse(str(error)) from None
    return builder.put(node, layer, [out])


def global_max(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """The largest value of each channel: a pooling whose kernel is the image."""
    assert values[0] is not None
    out = builder.settle(values[0])
    return builder.put(node, MaxPool(image(node, out)), [out])


def global_mean(builder: Builder, node: Node, values: Sequence[Value | None]) -> Out:
    """The mean of each channel."""
    assert values[0] is not None
    return builder.put(node, kinds.GlobalAvgPool(), [builder.settle(values[0])])
