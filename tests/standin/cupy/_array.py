"""The device array: a wrapper around a NumPy array that nobody may see from the host."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from hostgpu import streams
from hostgpu.counts import counts

from cupy import _index, _memory
from cupy._lazy import queued, reject_host
from cupy._operators import Operators


class ndarray(Operators):
    """An array in device memory; fresh memory is full of NaN."""

    __array_priority__ = 100

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: _memory.MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ) -> None:
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        dtype = np.dtype(dtype)
        if strides is not None and memptr is None:
            raise ValueError("memptr is required if strides is given.")
        if memptr is None:
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            memptr = _memory.MemoryPointer(_memory.Memory(size), 0)
        block = memptr.mem._block
        place = block.bytes if block else np.empty(0, np.uint8)
        offset = memptr.ptr - block.address if block else 0
        self._adopt(np.ndarray(shape, dtype, place, offset, strides, order), memptr.mem, None)

    def _adopt(self, host: np.ndarray, mem: _memory.Memory, base: ndarray | None) -> None:
        self._host = host
        self._mem = mem
        self.base = base

    def _view(self, host: np.ndarray) -> ndarray:
        counts.views += 1
        view = object.__new__(ndarray)
        view._adopt(host, self._mem, self if self.base is None else self.base)
        return view

    # what it is

    dtype = property(lambda self: self._host.dtype)
    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: self._view(self._host.T))

    @property
    def data(self) -> _memory.MemoryPointer:
        start = self._host.__array_interface__["data"][0]
        return _memory.MemoryPointer(self._mem, start - self._mem.ptr)

    @property
    def device(self) -> Any:
        from cupy.cuda import Device

        return Device(self._mem.device_id)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        stream = streams.current().handle
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": stream or 1,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
        }

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # to and from the host

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        import cupy

        function = getattr(cupy, ufunc.__name__, None)
        if function is None or method != "__call__":
            return NotImplemented
        if "out" in kwargs:
            (kwargs["out"],) = kwargs["out"]
        return function(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        import cupy

        try:
            module = functools.reduce(getattr, func.__module__.split(".")[1:], cupy)
            own = getattr(module, func.__name__)
        except AttributeError:
            return NotImplemented
        if not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return own(*args, **kwargs)

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        queue = streams.current() if stream is None else streams.find(stream.ptr)
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
            if out.dtype != self.dtype:
                raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
            if out.shape != self.shape:
                raise ValueError(f"Shape mismatch. {self.shape}, {out.shape}")
            if not (out.flags.c_contiguous or out.flags.f_contiguous):
                raise RuntimeError("`out` cannot be specified when copying to non-contiguous")
        if out is None:
            if order == "A":
                order = "F" if self.flags.f_contiguous and not self.flags.c_contiguous else "C"
            out = np.empty(self.shape, self.dtype, order)
        source, target = self._host, out

        def work() -> None:
            target[...] = source

        counts.launched("copy to host", out)
        mark = queue.put(work)
        if blocking or _memory.memory.pinned(out.__array_interface__["data"][0]) is None:
            queue.finish(mark.number)
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if self.flags.c_contiguous:
            arr = np.ascontiguousarray(arr)
        elif self.flags.f_contiguous:
            arr = np.asfortranarray(arr)
        else:
            raise RuntimeError("Cannot set to non-contiguous array")
        self.data.copy_from_host_async(arr.ctypes.data, self.nbytes, stream)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __bool__(self) -> bool:
        return bool(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    # parts

    def __getitem__(self, key: Any) -> ndarray:
        if not _index.advanced(key):
            return self._view(self._host[_index.basic(key)])
        key = _index.uploaded(key)
        if _index.has_mask(key):  # how many items there are is needed now
            host = _index.on_host(key)
            return queued(lambda a: a[host], self)
        return queued(lambda a, *parts: a[parts], self, *key)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")
        reject_host(value)
        target, source = self._host, value._host if isinstance(value, ndarray) else value
        if _index.advanced(key):
            parts = _index.uploaded(key)
            place = tuple(p._host if isinstance(p, ndarray) else p for p in parts)
            counts.launched("put", *(v for v in (source, *place) if isinstance(v, np.ndarray)))
            streams.current().put(lambda: operator.setitem(target, place, source))
            return
        part = target[_index.basic(key)]
        if np.broadcast_shapes(part.shape, np.shape(source)) != part.shape:
            raise ValueError(f"cannot broadcast {np.shape(source)} into {part.shape}")
        counts.launched("copy", part, *((source,) if isinstance(source, np.ndarray) else ()))
        streams.current().put(lambda: np.copyto(part, source, casting="unsafe"))

    # views

    def reshape(self, *shape: Any, order: str = "C", copy: bool | None = None) -> ndarray:
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        host = self._host.view()
        try:
            view = np.reshape(host, shape, order=order, copy=False)
        except ValueError:
            np.reshape(_shape_only(self), shape)  # raises where the shape itself is wrong
            if copy is False:
                raise
            return self.copy(order).reshape(shape, order=order)
        return self.copy("K")._view(view) if copy else self._view(view)

    def ravel(self, order: str = "C") -> ndarray:
        return self.reshape(-1, order=order)

    def flatten(self, order: str = "C") -> ndarray:
        return self.copy(order).reshape(-1, order=order)

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return self._view(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> ndarray:
        return self._view(self._host.squeeze(axis))

    def view(self, dtype: Any = None) -> ndarray:
        return self._view(self._host.view() if dtype is None else self._host.view(dtype))

    # copies

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: Any = True
    ) -> ndarray:
        if casting is not None or subok is not None:
            raise TypeError("casting and subok are not supported yet")
        model = np.empty_like(self._host, dtype, order)
        if (
            not copy
            and model.dtype == self.dtype
            and (order == "K" or model.strides == self.strides)
        ):
            return self
        return like(model, self)

    def copy(self, order: str = "C") -> ndarray:
        return self.astype(self.dtype, order)

    def fill(self, value: Any) -> None:
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        self[...] = value


def like(model: np.ndarray, source: ndarray) -> ndarray:
    """Queue a copy into a new array with the dtype and strides of `model`."""
    result = ndarray(model.shape, model.dtype)
    if model.size:
        memptr = result.data
        result = ndarray(model.shape, model.dtype, memptr, model.strides)
    target, host = result._host, source._host
    counts.launched("copy", target, host)
    streams.current().put(lambda: np.copyto(target, host, casting="unsafe"))
    return result


def _shape_only(array: ndarray) -> np.ndarray:
    return np.broadcast_to(np.ones((), array.dtype), array.shape)
