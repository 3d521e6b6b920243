"""Functions that make device arrays, or bring them from and to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from hostgpu import streams

from cupy._array import like, ndarray

__all__ = [
    "arange",
    "array",
    "asanyarray",
    "asarray",
    "ascontiguousarray",
    "asfortranarray",
    "asnumpy",
    "copy",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "identity",
    "linspace",
    "ones",
    "ones_like",
    "zeros",
    "zeros_like",
]


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(empty(shape, dtype, order), 0)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    return _filled(empty(shape, dtype), 1)


def full(shape: Any, fill_value: Any, dtype: Any = None) -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    return _filled(empty(shape, dtype), fill_value)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    if subok is not None:
        raise TypeError("subok is not supported yet")
    if not isinstance(prototype, ndarray):
        raise TypeError(f"prototype must be a device array, not {type(prototype).__name__}")
    model = np.empty_like(prototype._host, dtype, order, shape=shape)
    result = ndarray(model.shape, model.dtype)
    if not model.size:
        return result
    return ndarray(model.shape, model.dtype, result.data, model.strides)


def zeros_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), 0)


def ones_like(
    a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), 1)


def full_like(
    a: ndarray,
    fill_value: Any,
    dtype: Any = None,
    order: str = "K",
    subok: Any = None,
    shape: Any = None,
) -> ndarray:
    return _filled(empty_like(a, dtype, order, subok, shape), fill_value)


def _filled(result: ndarray, value: Any) -> ndarray:
    result.fill(value)
    return result


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    first, last = (0, start) if stop is None else (start, stop)
    return _upload(np.arange(first, last, step, dtype=dtype))


def linspace(start: float, stop: float, num: int = 50, dtype: Any = None) -> ndarray:
    return _upload(np.linspace(start, stop, num, dtype=dtype))


def eye(N: int, M: int | None = None, k: int = 0, dtype: Any = float) -> ndarray:
    return _upload(np.eye(N, M, k, dtype=dtype))


def identity(n: int, dtype: Any = float) -> ndarray:
    return eye(n, dtype=dtype)


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    order = order or "K"
    if isinstance(obj, ndarray):
        wanted = obj.dtype if dtype is None else dtype
        result = obj.astype(wanted, order, copy=bool(copy))
        return result.reshape((1,) * max(0, ndmin - result.ndim) + result.shape)
    if isinstance(obj, (list, tuple)) and any(isinstance(item, ndarray) for item in obj):
        from cupy import stack

        return stack([array(item, dtype) for item in obj])
    host = np.array(obj, dtype, copy=None, ndmin=ndmin)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    if order in "AK":
        # unlike NumPy, the order of a transposed array that is neither is not kept
        order = "F" if host.flags.f_contiguous and not host.flags.c_contiguous else "C"
    result = _upload(host, order)
    if blocking:
        streams.current().finish(streams.current().issued)
    return result


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    return array(a, dtype, copy=None, order=order or "K", blocking=blocking)


asanyarray = asarray


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=None, order="C", ndmin=1)


def asfortranarray(a: Any, dtype: Any = None) -> ndarray:
    return array(a, dtype, copy=None, order="F", ndmin=1)


def copy(a: ndarray, order: str = "K") -> ndarray:
    return array(a, order=order) if not isinstance(a, ndarray) else a.copy(order)


def _upload(host: np.ndarray, order: str = "C") -> ndarray:
    """Queue an upload of the host array as it is now."""
    model = np.array(host, copy=True, order=order)

    class _Source:
        _host = model

    return like(model, _Source)


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    if out is None:
        return np.asarray(a, order=order)
    np.copyto(out, a)
    return out
