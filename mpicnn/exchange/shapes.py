"""What layers the operators of ONNX are that join values or change their shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from mpicnn import layers as kinds
from mpicnn.exchange.arithmetic import Values
from mpicnn.exchange.operators import constant, global_mean, regrouped
from mpicnn.exchange.values import Affine, Builder, Channel, Grouped, Node, Out, Padded, Value


def concat(builder: Builder, node: Node, values: Values) -> Value:
    """Channels one behind the other; all of one value, in their order, are that value again."""
    channels = [value for value in values if isinstance(value, Channel)]
    if channels and len(channels) == len(values) and node.get("axis") in (1, -3):
        base, alone = channels[0].base, channels[0].readers == len(channels)
        found = [(each.base, each.index, each.bare) for each in channels]
        if found == [(base, index, False) for index in range(base.shape[0])]:
            scale, shift = (
                np.array(v) for v in zip(*((c.scale, c.shift) for c in channels), strict=True)
            )
            return Affine(base, scale, shift, alone, node)
    outs = [builder.settle(value) for value in values if value is not None]
    axes = len(outs[0].shape) + 1
    if node.get("axis") % axes != 1:
        raise node.refuse(f"axis {node.get('axis')}, expected that of the channels, 1")
    return outs[0] if len(outs) == 1 else builder.put(node, kinds.Concat(), outs)


def pad(builder: Builder, node: Node, values: Values) -> Value:
    """Zeros around images, for the convolution or mean pooling behind it."""
    node.expect(mode="constant")
    value = values[0]
    assert value is not None
    given = len(values) > 1 and values[1] is not None
    pads = constant(node, values, 1, "pads").tolist() if given else list(node.get("pads"))
    filled = len(values) > 2 and values[2] is not None
    number = constant(node, values, 2, "value").item() if filled else node.get("value", 0.0)
    if len(values) > 3 and values[3] is not None:
        axes = [int(a) % 4 for a in constant(node, values, 3, "axes").reshape(-1)]
        given_pads, pads = pads, [0] * 8
        for at, axis in enumerate(axes):
            pads[axis], pads[axis + 4] = given_pads[at], given_pads[at + len(axes)]
    if not any(pads):
        return value
    if number != 0 or len(pads) != 8 or any(pads[at] for at in (0, 1, 4, 5)) or min(pads) < 0:
        raise node.refuse("expected zeros above, below, left and right of images")
    return Padded(builder.settle(value), (pads[2], pads[6], pads[3], pads[7]), node)


def gather(builder: Builder, node: Node, values: Values) -> Channel:
    """One channel, for arithmetic of its own before all are put together again."""
    assert values[0] is not None
    out = builder.settle(values[0])
    index = constant(node, values, 1, "index")
    if node.get("axis", 0) % 4 != 1 or len(out.shape) != 3 or index.size != 1:
        raise node.refuse("expected one channel of images")
    place = int(index.reshape(())) % out.shape[0]
    return Channel(out, place, 1.0, 0.0, builder.readers[node.inputs[0]], index.ndim == 0, node)


def unsqueeze(builder: Builder, node: Node, values: Values) -> Channel:
    """One channel with the axis that it had."""
    value = values[0]
    given = len(values) > 1 and values[1] is not None
    axes = constant(node, values, 1, "axes").tolist() if given else list(node.get("axes", ()))
    if not (isinstance(value, Channel) and value.bare and axes in ([1], [-3])):
        raise node.refuse("expected one channel of images, which was an axis")
    return replace(value, bare=False, node=node)


def flatten(builder: Builder, node: Node, values: Values) -> Out:
    """All of an example in one row."""
    assert values[0] is not None
    out = builder.settle(values[0])
    if node.get("axis", 1) % (len(out.shape) + 1) != 1:
        raise node.refuse(f"axis {node.get('axis')}, expected 1")
    return flat(builder, node, out)


def flat(builder: Builder, node: Node, out: Out) -> Out:
    """Return a value in rows of features."""
    return out if len(out.shape) == 1 else builder.put(node, kinds.Flatten(), [out])


def reshape(builder: Builder, node: Node, values: Values) -> Value:
    """Examples in rows, examples as they are, or channels in groups to be normalised."""
    value = values[0]
    assert value is not None
    wanted = [int(n) for n in constant(node, values, 1, "shape").reshape(-1)]
    base = value.base if isinstance(value, Grouped) else builder.settle(value)
    size = math.prod(base.shape)
    before = (builder.batch, *base.shape)
    if isinstance(value, Grouped):
        before = builder.batch, value.groups, size // value.groups
    if not node.get("allowzero", 0):
        wanted = [before[at] if n == 0 and at < len(before) else n for at, n in enumerate(wanted)]
    if wanted.count(-1) == 1:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = builder.batch * size // rest if rest > 0 else 0
    shape = tuple(wanted[1:])
    if wanted[:1] == [builder.batch] and math.prod(shape) == size:
        if isinstance(value, Grouped):
            if shape == base.shape and value.eps is not None:
                return regrouped(builder, value)
        elif shape == base.shape:
            return base
        elif len(shape) == 1:
            return flat(builder, node, base)
        elif len(base.shape) == 3 and base.shape[0] % shape[0] == 0:
            return Grouped(base, shape[0], node)
    raise node.refuse(f"of examples of shape {base.shape} to {shape}: expected rows, (n, features)")


def squeeze(builder: Builder, node: Node, values: Values) -> Out:
    """Rows of features from images of one pixel."""
    assert values[0] is not None
    out = builder.settle(values[0])
    axes = _axes(node, values, out)
    if not axes or 0 in axes or any(out.shape[axis - 1] != 1 for axis in axes) or 1 in axes:
        raise node.refuse(f"axes {sorted(axes)} of examples of shape {out.shape}, expected 2 and 3")
    if len(axes) != len(out.shape) - 1:
        raise node.refuse(f"axes {sorted(axes)}, expected 2 and 3 together")
    return flat(builder, node, out)


def mean(builder: Builder, node: Node, values: Values) -> Out:
    """The mean of each channel."""
    assert values[0] is not None
    out = builder.settle(values[0])
    if len(out.shape) != 3 or _axes(node, values, out) != {2, 3}:
        raise node.refuse("expected the mean over height and width together")
    found = global_mean(builder, node, [out])
    return found if node.get("keepdims", 1) else flat(builder, node, found)


def _axes(node: Node, values: Values, out: Out) -> set[int]:
    """Return the axes that a node names, the batch counted as 0."""
    given = len(values) > 1 and values[1] is not None
    found = constant(node, values, 1, "axes") if given else np.asarray(node.get("axes", ()))
    return {int(axis) % (len(out.shape) + 1) for axis in found.reshape(-1)}
