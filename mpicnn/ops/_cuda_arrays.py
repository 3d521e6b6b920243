"""Lay CuPy arrays out as the GPU's kernels read them; compile these kernels and start them.

Logical order is n c h w everywhere. In memory an array (n, c, …) has its channels last: NHWC for
images, plain C order for (n, c). All kernels are CUDA C++ in `_cuda/`, compiled when first used.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike

Array = Any
"""An array of CuPy: its address and copies have no counterpart in NumPy's types."""

FLOATS = {"float32": "float", "float64": "double"}
# Blocks that are started at most: they fill the largest cards several times over, and every kernel
# goes on in steps of its grid.
BLOCKS = 4096
THREADS = 256
_TILE = 1024  # values, as in transpose.cu: 4 for each of 256 threads

# Made anew, a NumPy scalar takes most of the time of a launch, and a pooling has 13 of them.
_int64 = lru_cache(1 << 12)(np.int64)


def cells(x: Array) -> Array:
    """Return x (n, c, …) with its channels last in memory, copied only where they are not.

    Strides along axes of length 1 have no meaning and are left as they are.
    """
    last = x.transpose(_channels_last(x.ndim))
    if last.flags.c_contiguous:
        return x
    if x.flags.c_contiguous and _are_images(x):
        return _transpose(x, empty_cells(x.shape, x.dtype), x.shape[1], x.shape[2] * x.shape[3])
    return _logical(cupy.ascontiguousarray(last))


def plain(x: Array) -> Array:
    """Return x in C order in memory, copied only where it does not lie so."""
    if x.flags.c_contiguous:
        return x
    if _are_images(x) and x.transpose(_channels_last(4)).flags.c_contiguous:
        return _transpose(x, cupy.empty(x.shape, x.dtype), x.shape[2] * x.shape[3], x.shape[1])
    return cupy.ascontiguousarray(x)


def flat(x: Array) -> Array:
    """Return the items of x in logical order, flat: a view where they lie so, else a copy."""
    return plain(x).reshape(-1)


def cells_like(name: str, value: Array, x: Array) -> Array:
    """Return `cells(value)`; raises ValueError unless it has the shape and the dtype of x."""
    if value.shape != x.shape or value.dtype != x.dtype:
        found = f"{value.dtype} of shape {value.shape}"
        raise ValueError(f"{name} must be {x.dtype} of shape {x.shape}, not {found}")
    return cells(value)


def empty_cells(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return an array (n, c, …) that has its channels last in memory, with values not yet set."""
    return _logical(cupy.empty(_memory_shape(shape), dtype))


def zero_cells(shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return zeros (n, c, …) that have their channels last in memory."""
    return _logical(cupy.zeros(_memory_shape(shape), dtype))


def _are_images(x: Array) -> bool:
    return x.ndim == 4 and x.dtype.name in FLOATS


def _transpose(x: Array, y: Array, rows: int, columns: int) -> Array:
    """Fill y with what is in the memory of x, matrices (rows, columns), each transposed; return y.

    A tile is about square, or as long as the other side is short.
    """
    across = min(columns, max(32, _TILE // rows))
    down = min(rows, _TILE // across)
    grid, room = [], BLOCKS
    for tiles in (-(-columns // across), -(-rows // down), len(x)):
        grid.append(max(1, min(room, tiles)))
        room //= grid[-1]
    threads = 32 * -(-down * across // 128)
    sizes = len(x), rows, columns, down, across
    launch("transpose", "transpose.cu", x.dtype, tuple(grid), threads, x, y, *sizes)
    return y


def blocks(items: int, per_block: int = THREADS) -> int:
    """Return how many blocks to start for so many items."""
    return max(1, min(BLOCKS, -(-items // per_block)))


def launch(
    name: str,
    file: str,
    dtype: np.dtype[Any],
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: Any,
    shared: int = 0,
) -> None:
    """Start the kernel `name` of `_cuda/<file>`, compiled for `dtype`, on the current stream.

    Arrays are passed as pointers and must be laid out as the kernel expects. A Python int is
    passed as int64, a float as `dtype`, a NumPy scalar as it is. `shared` is the number of bytes
    of dynamic shared memory. The call returns before the kernel has run.
    """
    real = dtype.type
    values = tuple(
        _int64(a) if isinstance(a, int) else real(a) if type(a) is float else a for a in args
    )
    grid = grid if isinstance(grid, tuple) else (grid,)
    block = block if isinstance(block, tuple) else (block,)
    kernel(name, file, dtype)(grid, block, values, shared_mem=shared)


@cache
def kernel(name: str, file: str, dtype: np.dtype[Any]) -> Any:
    """Return a kernel of `_cuda/<file>`, compiled once for each dtype.

    Raises ValueError for other arrays than float32 and float64.
    """
    real = FLOATS.get(dtype.name)
    if real is None:
        raise ValueError(f"arrays must be float32 or float64, not {dtype}")
    return _module(file, real).get_function(name)


def source(file: str) -> str:
    """Return the text of `_cuda/<file>` behind what all kernels share."""
    folder = files("mpicnn.ops") / "_cuda"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in ("common.cu", file))


@cache
def _module(file: str, real: str) -> Any:
    return cupy.RawModule(code=source(file), options=(f"-DREAL={real}",))


def _channels_last(ndim: int) -> tuple[int, ...]:
    return (0, *range(2, ndim), 1)[:ndim]


def _memory_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _channels_last(len(shape)))


def _logical(last: Array) -> Array:
    """Return a view (n, c, …) of an array (n, …, c)."""
    return last.transpose((0, last.ndim - 1, *range(1, last.ndim - 1))[: last.ndim])
