"""What layers the operators of ONNX are that compute value by value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mpicnn import layers as kinds
from mpicnn.exchange.operators import constant
from mpicnn.exchange.values import Affine, Builder, Channel, Node, Out, Term, Value, decimal
from mpicnn.layers import Layer
from mpicnn.ops.interface import Array

Values = Sequence[Value | None]
Reader = Callable[[Builder, Node, Values], Value]

HALF_SQRT = math.sqrt(0.5)


def plain(layer: Layer) -> Reader:
    """Return the reader of an operator that is one layer without settings."""

    def read(builder: Builder, node: Node, values: Values) -> Out:
        assert values[0] is not None
        return builder.put(node, layer, [builder.settle(values[0])])

    return read


def passed(builder: Builder, node: Node, values: Values) -> Value:
    """Return what is read, unchanged."""
    assert values[0] is not None
    return values[0]


def last_alone(builder: Builder, node: Node, values: Values) -> Out:
    """Return what is read, of the last node: logits are before softmax."""
    assert values[0] is not None
    out = builder.settle(values[0])
    axis = node.get("axis", -1 if builder.opset >= 13 else 1) % (len(out.shape) + 1)
    if node.outputs[0] != builder.output or axis != 1 or set(out.shape[1:]) - {1}:
        raise node.refuse("only at the end of a network, over classes, where it is left out")
    builder.notes.append(f"{node.op} at the end is left out: networks give logits")
    return out


def cast(builder: Builder, node: Node, values: Values) -> Value:
    """Return what is read: all numbers are float32 here."""
    FLOAT, HALF, DOUBLE, BFLOAT = 1, 10, 11, 16  # noqa: N806  (TensorProto's)
    if node.op == "CastLike":
        floats = not isinstance(values[1], np.ndarray) or values[1].dtype.kind == "f"
    else:
        floats = node.get("to") in (FLOAT, HALF, DOUBLE, BFLOAT)
    if not floats:
        raise node.refuse("to another type than a floating-point one")
    return passed(builder, node, values)


def leaky_relu(builder: Builder, node: Node, values: Values) -> Out:
    """Leaky ReLU, also as PRelu with one slope for all channels."""
    assert values[0] is not None
    slope = node.number("alpha", 0.01)
    if node.op == "PRelu":
        slopes = constant(node, values, 1, "slope")
        if np.unique(slopes).size != 1:
            raise node.refuse("slopes that differ between channels")
        slope = decimal(slopes.flat[0])
    if slope < 0:
        raise node.refuse(f"slope {slope}, expected none below 0")
    return builder.put(node, kinds.LeakyReLU(slope), [builder.settle(values[0])])


def gelu(builder: Builder, node: Node, values: Values) -> Out:
    """GELU, exact."""
    node.expect(approximate="none")
    return plain(kinds.GELU())(builder, node, values)  # type: ignore[return-value]


def clip(builder: Builder, node: Node, values: Values) -> Value:
    """ReLU6 or ReLU by its bounds; of x + 3 a part of hard swish."""
    bounds = []
    for at, name in ((1, "min"), (2, "max")):
        given = len(values) > at and values[at] is not None
        bounds.append(constant(node, values, at, name).item() if given else node.get(name))
    least, most = bounds
    most = None if most is not None and most > 3e38 else most
    value = values[0]
    assert value is not None
    if isinstance(value, Affine) and (least, most) == (0, 6) and is_just(value, 1, 3):
        return Term(value.base, "relu6(x+3)", 1.0, node)
    if least == 0 and most in (6, None):
        layer = kinds.ReLU() if most is None else kinds.ReLU6()
        return builder.put(node, layer, [builder.settle(value)])
    raise node.refuse(f"bounds {least} and {most}, expected 0 and 6, or 0 and none")


def hard_sigmoid(builder: Builder, node: Node, values: Values) -> Term:
    """A part of hard swish, with the numbers that it has there."""
    assert values[0] is not None
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if not math.isclose(alpha, 1 / 6, rel_tol=1e-6) or beta != 0.5:
        raise node.refuse(f"alpha {alpha} and beta {beta}, expected 1/6 and 0.5, as in hard swish")
    return Term(builder.settle(values[0]), "relu6(x+3)", 1 / 6, node)


def erf(builder: Builder, node: Node, values: Values) -> Term:
    """A part of GELU: of x / sqrt(2)."""
    value = values[0]
    if not (isinstance(value, Affine) and is_just(value, HALF_SQRT, 0)):
        raise node.refuse("of anything but x / sqrt(2), as in GELU")
    return Term(value.base, "erf", 1.0, node)


def is_just(value: Affine, scale: float, shift: float) -> bool:
    """Say whether a value is x * scale + shift for all channels."""
    return np.allclose(value.scale, scale, rtol=1e-6) and np.allclose(value.shift, shift)


def total(builder: Builder, node: Node, values: Values) -> Value:
    """A sum of what layers give, or of one of them and a constant per channel."""
    if any(isinstance(value, np.ndarray) for value in values):
        value, number, at = _sides(node, values)
        if isinstance(value, Term) and value.kind == "erf" and np.all(number == value.factor):
            return replace(value, kind="1+erf", node=node)
        return builder.affine(node, value, node.inputs[at], 1.0, _per_channel(node, value, number))
    outs = [builder.settle(value) for value in values if value is not None]
    return outs[0] if len(outs) == 1 else builder.put(node, kinds.Add(), outs)


def difference(builder: Builder, node: Node, values: Values) -> Value:
    """What a layer gives less a constant per channel."""
    value, number, at = _sides(node, values)
    if at != 0:
        raise node.refuse("a constant less what a layer gives")
    return builder.affine(node, value, node.inputs[0], 1.0, -_per_channel(node, value, number))


def quotient(builder: Builder, node: Node, values: Values) -> Value:
    """What a layer gives, divided by a constant per channel."""
    value, number, at = _sides(node, values)
    if at != 0 or not np.all(number):
        raise node.refuse("a constant divided by what a layer gives, or a division by 0")
    return _scaled(builder, node, value, 0, 1 / number.astype(np.float64))


def product(builder: Builder, node: Node, values: Values) -> Value:
    """Gates times what a layer gives, the end of an activation, or a constant per channel."""
    if any(isinstance(value, np.ndarray) for value in values):
        value, number, at = _sides(node, values)
        return _scaled(builder, node, value, at, number.astype(np.float64))
    first, second = values
    assert first is not None and second is not None
    for term, other in ((first, second), (second, first)):
        if isinstance(term, Term) and (found := _times_x(builder, node, term, other)):
            return found
    a, b = builder.settle(first), builder.settle(second)
    for x, gate in ((a, b), (b, a)):
        layer, reads = builder.layers.get(gate.layer, (None, ()))
        if isinstance(layer, kinds.Sigmoid) and reads == (x.layer,):
            return builder.put(node, kinds.SiLU(), [x])
    # the gates are the smaller ones, on whichever side
    pair = [b, a] if math.prod(a.shape) < math.prod(b.shape) else [a, b]
    return builder.put(node, kinds.Multiply(), pair)


def _sides(node: Node, values: Values) -> tuple[Value, Array, int]:
    """Return the value of two that is no constant, the constant, and where the value stands."""
    if len(values) == 2:
        for at in (0, 1):
            value, number = values[at], values[1 - at]
            if isinstance(number, np.ndarray) and value is not None:
                return value, number, at
    raise node.refuse("expected what a layer gives, and a constant")


def _per_channel(node: Node, value: Value, number: Array) -> Array:
    """Return a constant as one number, or one for each channel, (c,)."""
    base = value if isinstance(value, Out) else getattr(value, "base", None)
    if number.size == 1:
        return number.reshape(()).astype(np.float64)
    if isinstance(base, Out) and not isinstance(value, Channel):
        c, axes = base.shape[0], len(base.shape)
        shape = (1,) * (axes + 1 - number.ndim) + number.shape
        if shape == (1, c, *(1,) * (axes - 1)):
            return number.reshape(-1).astype(np.float64)
    raise node.refuse(f"a constant of shape {number.shape}, expected one number per channel")


def _scaled(builder: Builder, node: Node, value: Value, at: int, number: Array) -> Value:
    """Return a value times a constant."""
    factors = _per_channel(node, value, number)
    if isinstance(value, Term) and factors.ndim == 0:
        return _ended(builder, node, replace(value, factor=value.factor * float(factors)))
    return builder.affine(node, value, node.inputs[at], factors, 0.0)


def _times_x(builder: Builder, node: Node, term: Term, other: Value) -> Value | None:
    """Return a term times its own x, or a multiple of it; None for anything else."""
    factor = term.factor
    if isinstance(other, Affine) and np.ndim(other.scale) == 0 and not np.any(other.shift):
        factor, base = factor * float(other.scale), other.base
    elif isinstance(other, Out):
        base = other
    else:
        return None
    kinds_of = {"1+erf": "x(1+erf)", "relu6(x+3)": "x*relu6(x+3)"}
    if base != term.base or term.kind not in kinds_of:
        return None
    return _ended(builder, node, Term(base, kinds_of[term.kind], factor, node))


def _ended(builder: Builder, node: Node, term: Term) -> Value:
    """Return the activation where a term is all of one, else the term."""
    for kind, factor, layer in (
        ("x(1+erf)", 0.5, kinds.GELU()),
        ("x*relu6(x+3)", 1 / 6, kinds.HardSwish()),
    ):
        if term.kind == kind and math.isclose(term.factor, factor, rel_tol=1e-6):
            return builder.put(node, layer, [term.base])
    return replace(term, node=node)


def dropout(builder: Builder, node: Node, values: Values) -> Out:
    """Dropout, which does nothing in evaluation."""
    assert values[0] is not None
    out = builder.settle(values[0])
    given = len(values) > 1 and values[1] is not None
    rate = (
        decimal(constant(node, values, 1, "ratio").item()) if given else node.number("ratio", 0.5)
    )
    if not 0 <= rate < 1:
        raise node.refuse(f"ratio {rate}, expected 0 or more and below 1")
    return builder.put(node, kinds.Dropout(rate), [out])
