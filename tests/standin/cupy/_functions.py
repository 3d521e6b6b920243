"""NumPy's functions on device arrays, as far as CuPy has them with the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hostgpu import streams
from hostgpu.counts import counts

from cupy._array import ndarray
from cupy._lazy import queued, reject_host

_UFUNCS = """
    abs absolute add arctan bitwise_and bitwise_or bitwise_xor ceil cos divide equal exp exp2 expm1
    floor floor_divide fmax fmin greater greater_equal hypot invert isfinite isinf isnan left_shift
    less less_equal log log10 log1p log2 logical_and logical_not logical_or logical_xor maximum
    minimum mod multiply negative not_equal power reciprocal remainder right_shift rint sign
    signbit sin sqrt square subtract tan tanh true_divide trunc
""".split()
# With the keywords that CuPy takes: some of NumPy's are missing, such as initial and where.
_QUEUED = {
    "argmax": "axis dtype out keepdims",
    "argmin": "axis dtype out keepdims",
    "argsort": "axis kind",
    "bincount": "weights minlength",
    "clip": "a_min a_max out",
    "cumsum": "axis dtype out",
    "diff": "n axis prepend append",
    "dot": "out",
    "einsum": "optimize",
    "flip": "axis",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "pad": "mode constant_values",
    "prod": "axis dtype out keepdims",
    "repeat": "axis",
    "roll": "axis",
    "sort": "axis kind",
    "std": "axis dtype out ddof keepdims",
    "sum": "axis dtype out keepdims",
    "take": "axis out",
    "tensordot": "axes",
    "tile": "reps",
    "trace": "offset axis1 axis2 dtype out",
    "tril": "k",
    "triu": "k",
    "var": "axis dtype out ddof keepdims",
    "where": "x y",
}
_VIEWS = "expand_dims moveaxis rollaxis broadcast_to diagonal".split()
_METHODS = "ravel reshape squeeze swapaxes transpose".split()

__all__ = [
    *_UFUNCS,
    *_QUEUED,
    *_VIEWS,
    *_METHODS,
    "all",
    "allclose",
    "amax",
    "amin",
    "any",
    "array_equal",
    "concatenate",
    "copyto",
    "count_nonzero",
    "matmul",
    "may_share_memory",
    "ndim",
    "nonzero",
    "result_type",
    "shape",
    "shares_memory",
    "size",
    "split",
    "stack",
]


def _ufunc(name: str) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def call(*args: Any, out: Any = None, **kwargs: Any) -> ndarray:
        _check_keywords(name, kwargs, "casting dtype")
        if len(args) > function.nin:
            *args, out = args
        return queued(function, *args, out=out, **kwargs)

    call.__name__ = name
    return call


def _function(name: str, keywords: str) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def call(*args: Any, **kwargs: Any) -> ndarray:
        _check_keywords(name, kwargs, keywords)
        return queued(function, *args, **kwargs)

    call.__name__ = name
    return call


def _check_keywords(name: str, given: dict[str, Any], known: str) -> None:
    unknown = set(given) - set(known.split())
    if unknown:
        raise TypeError(f"{name}() got an unexpected keyword argument {sorted(unknown)[0]!r}")


def _as_view(name: str) -> Callable[..., ndarray]:
    function = getattr(np, name)

    def call(a: ndarray, *args: Any, **kwargs: Any) -> ndarray:
        return a._view(function(a._host, *args, **kwargs))

    return call


def _as_method(name: str) -> Callable[..., ndarray]:
    return lambda a, *args, **kwargs: getattr(a, name)(*args, **kwargs)


globals().update({name: _ufunc(name) for name in _UFUNCS})
globals().update({item[0]: _function(*item) for item in _QUEUED.items()})
globals().update({name: _as_view(name) for name in _VIEWS})
globals().update({name: _as_method(name) for name in _METHODS})


def all(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return queued(np.all, a, axis=axis, out=out, keepdims=keepdims)


def any(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return queued(np.any, a, axis=axis, out=out, keepdims=keepdims)


def amax(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return queued(np.max, a, axis=axis, out=out, keepdims=keepdims)


def amin(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return queued(np.min, a, axis=axis, out=out, keepdims=keepdims)


def matmul(x1: ndarray, x2: ndarray, /, out: ndarray | None = None) -> ndarray:
    return queued(np.matmul, x1, x2, out=out)


def concatenate(
    tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return queued(np.concatenate, tuple(tup), axis=axis, out=out, dtype=dtype, casting=casting)


def stack(
    tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind"
) -> ndarray:
    return queued(np.stack, tuple(tup), axis=axis, out=out, dtype=dtype, casting=casting)


def split(ary: ndarray, indices_or_sections: Any, axis: int = 0) -> list[ndarray]:
    return [ary._view(part) for part in np.split(ary._host, indices_or_sections, axis)]


def count_nonzero(a: ndarray, axis: Any = None) -> ndarray:
    """Return a device array, where NumPy returns an int."""
    return queued(np.count_nonzero, a, axis=axis)


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    from cupy import asarray

    return tuple(asarray(index) for index in np.nonzero(a.get()))


def array_equal(a1: ndarray, a2: ndarray) -> ndarray:
    return queued(np.array_equal, a1, a2)


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> ndarray:
    return queued(np.allclose, a, b, rtol=rtol, atol=atol)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if not isinstance(dst, ndarray):
        raise TypeError(f"dst must be a device array, not {type(dst).__name__}")
    reject_host(src, where)
    source = src._host if isinstance(src, ndarray) else src
    if not np.can_cast(getattr(source, "dtype", dst.dtype), dst.dtype, casting):
        raise TypeError(f"Cannot cast {source.dtype} to {dst.dtype} in {casting} casting mode")
    np.broadcast_to(np.empty(np.shape(source), bool), dst.shape)  # raises where it does not fit
    mask = where._host if isinstance(where, ndarray) else True if where is None else where
    target = dst._host
    given = [value for value in (target, source, mask) if isinstance(value, np.ndarray)]
    counts.launched("copy", *given)
    streams.current().put(lambda: np.copyto(target, source, casting, where=mask))


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.may_share_memory(a._host, b._host)


def shares_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return np.shares_memory(a._host, b._host)


def result_type(*args: Any) -> np.dtype:
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in args))


def ndim(a: Any) -> int:
    return a.ndim if hasattr(a, "ndim") else np.ndim(a)


def shape(a: Any) -> tuple[int, ...]:
    return a.shape if hasattr(a, "shape") else np.shape(a)


def size(a: ndarray, axis: int | None = None) -> int:
    return a.size if axis is None else a.shape[axis]
