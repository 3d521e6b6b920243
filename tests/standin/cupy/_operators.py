"""The operators and reductions of device arrays, each a function of NumPy that is queued."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from cupy._lazy import queued


class Operators:
    """What `ndarray` inherits; the methods are set below, from tables."""

    def __matmul__(self, other: Any) -> Any:
        return queued(np.matmul, self, other)

    def dot(self, b: Any, out: Any = None) -> Any:
        return queued(np.dot, self, b, out=out)


def _binary(function: np.ufunc) -> Any:
    def method(self: Any, other: Any) -> Any:
        if other is None or isinstance(other, str):
            return NotImplemented
        return queued(function, self, other)

    return method


def _reflected(function: np.ufunc) -> Any:
    return lambda self, other: queued(function, other, self)


def _in_place(function: np.ufunc) -> Any:
    return lambda self, other: queued(function, self, other, out=self)


def _reduction(name: str, typed: bool) -> Any:
    function = getattr(np, name)

    def plain(self: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
        return queued(function, self, out=out, axis=axis, keepdims=keepdims)

    def with_dtype(
        self: Any,
        axis: Any = None,
        dtype: Any = None,
        out: Any = None,
        keepdims: bool = False,
    ) -> Any:
        return queued(function, self, out=out, axis=axis, dtype=dtype, keepdims=keepdims)

    return with_dtype if typed else plain


for _name, _ufunc in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
}.items():
    setattr(Operators, f"__{_name}__", _binary(_ufunc))
    setattr(Operators, f"__r{_name}__", _reflected(_ufunc))
    setattr(Operators, f"__i{_name}__", _in_place(_ufunc))
for _name, _ufunc in {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}.items():
    setattr(Operators, f"__{_name}__", _binary(_ufunc))
for _name, _ufunc in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
    setattr(Operators, f"__{_name}__", functools.partialmethod(lambda a, f: queued(f, a), _ufunc))
for _name in ("sum", "mean", "prod"):
    setattr(Operators, _name, _reduction(_name, typed=True))
for _name in ("min", "max", "any", "all", "argmax", "argmin"):
    setattr(Operators, _name, _reduction(_name, typed=False))
Operators.__hash__ = None
