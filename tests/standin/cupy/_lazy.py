"""Queue NumPy functions on device arrays: the shape and dtype at once, the numbers later."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from hostgpu import streams
from hostgpu.counts import counts

if TYPE_CHECKING:
    from cupy._array import ndarray

_SCALARS = (bool, int, float, complex, np.generic)


def queued(function: Callable[..., Any], *args: Any, out: Any = None, **kwargs: Any) -> ndarray:
    """Queue `function` of NumPy on device arrays and scalars; return the array it will fill.

    As with CuPy a new result is always in C order, host arrays raise TypeError, and nothing
    warns of NaN or division by 0.
    """
    from cupy import _array

    reject_host(*args, *kwargs.values())
    shapes = _swap(args, _dummy)
    with np.errstate(all="ignore"):
        # on arrays of one element in memory: cheap, and NumPy's own errors come at once
        model = np.asarray(function(*shapes, **_swap(kwargs, _dummy)))
    if out is None:
        out = _array.ndarray(model.shape, model.dtype)
    elif not isinstance(out, _array.ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    elif out.shape != model.shape:
        raise ValueError("Out shape is mismatched")
    elif not np.can_cast(model.dtype, out.dtype, "same_kind"):
        raise TypeError(f"output (typecode {out.dtype}) cannot hold {model.dtype}")
    target = out._host
    host_args, host_kwargs = _swap(args, _host), _swap(kwargs, _host)

    def work() -> None:
        with np.errstate(all="ignore"):
            target[...] = function(*host_args, **host_kwargs)

    given = [value for value in (*host_args, target) if isinstance(value, np.ndarray)]
    counts.launched(getattr(function, "__name__", "function"), *given)
    streams.current().put(work)
    return out


def reject_host(*values: Any) -> None:
    """Raise TypeError for host arrays, and whatever else CuPy takes no elements from."""
    from cupy import _array

    for value in values:
        if isinstance(value, (tuple, list)):
            reject_host(*value)
        elif isinstance(value, np.ndarray) and value.ndim == 0:
            continue
        elif isinstance(value, np.ndarray) or not (
            value is None
            or isinstance(value, (_array.ndarray, str, slice, type, np.dtype, *_SCALARS))
        ):
            raise TypeError(f"Unsupported type {type(value)}")


def _swap(value: Any, change: Callable[[ndarray], np.ndarray]) -> Any:
    from cupy import _array

    if isinstance(value, _array.ndarray):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_swap(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _swap(item, change) for key, item in value.items()}
    return value


def _dummy(array: ndarray) -> np.ndarray:
    # 0 where it may be an index: that is there in any array that has items
    one = np.ones((), array.dtype) * (array.dtype.kind not in "iu")
    return np.broadcast_to(one.astype(array.dtype), array.shape)


def _host(array: ndarray) -> np.ndarray:
    return array._host
