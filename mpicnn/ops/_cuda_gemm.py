"""Multiply matrices on the GPU: cuBLAS on arrays as they lie, and what goes before and after."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import cupy
import numpy as np
from cupy.cuda import cublas, runtime
from cupy.cuda.device import get_cublas_handle
from numpy.typing import DTypeLike

from mpicnn.ops._cuda_arrays import THREADS, Array, blocks, launch
from mpicnn.ops._cuda_precision import precision_of
from mpicnn.ops._cuda_rounded import BF16

_TYPES = {
    np.dtype(np.float32): runtime.CUDA_R_32F,
    np.dtype(np.float64): runtime.CUDA_R_64F,
    BF16: runtime.CUDA_R_16BF,
}
_COMPUTE = {
    "float32": cublas.CUBLAS_COMPUTE_32F,
    "float64": cublas.CUBLAS_COMPUTE_64F,
    "tf32": cublas.CUBLAS_COMPUTE_32F_FAST_TF32,
    "bf16": cublas.CUBLAS_COMPUTE_32F,
}


def multiply(a: Array, b: Array, out: Array, add: bool = False) -> None:
    """Set `out` to the matrix product a b, or add it to `out`; or so for stacks of matrices.

    a is (m, k), b (k, n) and out (m, n), all with a leading axis or none has one. out has unit
    stride along n. a and b have unit stride along one axis, else they are copied. They are what
    `_cuda_rounded.read` gives, out is float32 or float64. Raises ValueError where they do not fit.
    """
    (*stack, m, k), n = a.shape, b.shape[-1]
    if b.shape != (*stack, k, n) or out.shape != (*stack, m, n) or a.dtype != b.dtype:
        raise ValueError(
            f"no product of {a.dtype} {a.shape} and {b.dtype} {b.shape} for {out.shape}"
        )
    if stack == [1]:  # cuBLAS knows more ways for one product
        return multiply(a[0], b[0], out[0], add)
    if 0 in out.shape:
        return
    if k == 0:
        if not add:
            out.fill(0)
        return
    a, a_op, a_lead = _as_stored(a)
    b, b_op, b_lead = _as_stored(b)
    kind = _TYPES[a.dtype], _TYPES[b.dtype], _TYPES[out.dtype]
    scale = [_scalar(value, out.dtype)[0] for value in (1, int(add))]
    steps = [x.strides[0] // x.itemsize for x in (a, b, out)]
    lead = out.strides[-2] // out.itemsize if m > 1 else n
    how = _COMPUTE[precision_of(out.dtype)], cublas.CUBLAS_GEMM_DEFAULT
    handle = get_cublas_handle()
    # cuBLAS counts down columns, so that it sees every matrix transposed: out' = b' a'
    if not stack:
        cublas.gemmEx(
            handle, b_op, a_op, n, m, k, scale[0], b.data.ptr, kind[1], b_lead,
            a.data.ptr, kind[0], a_lead, scale[1], out.data.ptr, kind[2], lead, *how,
        )  # fmt: skip
    else:
        cublas.gemmStridedBatchedEx(
            handle, b_op, a_op, n, m, k, scale[0], b.data.ptr, kind[1], b_lead, steps[1],
            a.data.ptr, kind[0], a_lead, steps[0], scale[1],
            out.data.ptr, kind[2], lead, steps[2], *stack, *how,
        )  # fmt: skip


def finish(y: Array, b: Array | None, relu: bool) -> None:
    """Add b (o,), if given, to y (n, o, …), take the larger of that and 0, if `relu`; in place.

    y has its channels last in memory. Raises ValueError where b does not fit.
    """
    grid, o = blocks(y.size, 4 * THREADS), y.shape[1]
    if b is None:
        if relu and y.size:
            launch("relu_y", "elementwise.cu", y.dtype, grid, THREADS, y, y, y.size, 0.0)
        return
    if b.shape != (o,) or b.dtype != y.dtype:
        raise ValueError(f"b must be {y.dtype} of shape {(o,)}, not {b.dtype} {b.shape}")
    if y.size:
        least = 0.0 if relu else -math.inf
        args = y, cupy.ascontiguousarray(b), least, y.size // o, o
        launch("finish", "products.cu", y.dtype, grid, THREADS, *args)


def finish_bf16(x: Array, y: Array, b: Array | None, relu: bool) -> None:
    """Set y, float32 (n, o, ...), to x plus b, if given, and to 0 where that is less, if `relu`.

    x has the bits of bf16 values, and may have more channels and more rows, which are left out.
    Both have their channels last in memory. Raises ValueError where b does not fit.
    """
    o, columns = y.shape[1], x.shape[1]
    if b is not None and (b.shape != (o,) or b.dtype != y.dtype):
        raise ValueError(f"b must be {y.dtype} of shape {(o,)}, not {b.dtype} {b.shape}")
    if y.size:
        bias = y if b is None else cupy.ascontiguousarray(b)  # a kernel has no pointer to nothing
        least = 0.0 if relu else -math.inf
        args = x, columns, bias, int(b is not None), least, y, y.size // o, o
        launch("finish_bf16", "products.cu", y.dtype, blocks(y.size, 4 * THREADS), THREADS, *args)


def _as_stored(x: Array) -> tuple[Array, int, int]:
    """Return x, whether cuBLAS must transpose what it sees, and the stride of its lines."""
    rows, columns = x.shape[-2:]
    down, along = (stride // x.itemsize for stride in x.strides[-2:])
    if (along == 1 or columns == 1) and (rows == 1 or down >= columns):
        return x, cublas.CUBLAS_OP_N, down if rows > 1 else columns
    if (down == 1 or rows == 1) and (columns == 1 or along >= rows):
        return x, cublas.CUBLAS_OP_T, along if columns > 1 else rows
    return _as_stored(cupy.ascontiguousarray(x))


@cache
def _scalar(value: int, dtype: DTypeLike) -> tuple[int, Any]:
    """Return the address of a number in host memory, where cuBLAS reads it, and what holds it."""
    held = np.array(value, dtype)
    return held.ctypes.data, held
