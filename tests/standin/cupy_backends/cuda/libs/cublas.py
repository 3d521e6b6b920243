"""Stand in for cuBLAS: matrix products by column-major addresses, with NumPy.

Operands are rounded as the compute type allows a device to, so that precision shows. Sums are
NumPy's; a device adds in another order.
"""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
from hostgpu import memory, numerics, streams
from hostgpu.counts import counts

CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_OP_C = 0, 1, 2
CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE = 0, 1
CUBLAS_GEMM_DEFAULT, CUBLAS_GEMM_DEFAULT_TENSOR_OP = -1, 99
CUBLAS_DEFAULT_MATH, CUBLAS_TENSOR_OP_MATH = 0, 1
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC = 68, 69
CUBLAS_COMPUTE_32F_FAST_16F, CUBLAS_COMPUTE_32F_FAST_16BF = 74, 75
CUBLAS_COMPUTE_32F_FAST_TF32 = 77
CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC = 70, 71

_FLOAT, _DOUBLE, _BF16 = 0, 1, 14  # cudaDataType
_DTYPES = {_FLOAT: np.dtype("f4"), _DOUBLE: np.dtype("f8"), _BF16: np.dtype("u2")}
_SINGLE = (
    CUBLAS_COMPUTE_32F,
    CUBLAS_COMPUTE_32F_PEDANTIC,
    CUBLAS_COMPUTE_32F_FAST_16BF,
    CUBLAS_COMPUTE_32F_FAST_TF32,
)
_DOUBLES = (CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC)
_STATUS = {7: "CUBLAS_STATUS_INVALID_VALUE", 15: "CUBLAS_STATUS_NOT_SUPPORTED"}
_INT_MAX = 2**31 - 1

_numbers = itertools.count(1)
_math_modes: dict[int, int] = {}


class CUBLASError(RuntimeError):
    """A status of cuBLAS."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_STATUS[status])


def create() -> int:
    handle = next(_numbers)
    _math_modes[handle] = CUBLAS_DEFAULT_MATH
    return handle


def destroy(handle: int) -> None:
    del _math_modes[handle]


def setMathMode(handle: int, mode: int) -> None:
    _math_modes[handle] = mode


def getMathMode(handle: int) -> int:
    return _math_modes[handle]


def getVersion(handle: int) -> int:
    return 120900


def sgemm(handle, transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc) -> None:
    # fmt: off
    gemmEx(handle, transa, transb, m, n, k, alpha, A, _FLOAT, lda, B, _FLOAT, ldb, beta,
           C, _FLOAT, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
    # fmt: on


def dgemm(handle, transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc) -> None:
    # fmt: off
    gemmEx(handle, transa, transb, m, n, k, alpha, A, _DOUBLE, lda, B, _DOUBLE, ldb, beta,
           C, _DOUBLE, ldc, CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT)
    # fmt: on


def gemmEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc,
    computeType, algo,
) -> None:  # fmt: skip
    # fmt: off
    gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0,
                         B, Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo)
    # fmt: on


def sgemmStridedBatched(
    handle, transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC,
    batchCount,
) -> None:  # fmt: skip
    # fmt: off
    gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, _FLOAT, lda, strideA,
                         B, _FLOAT, ldb, strideB, beta, C, _FLOAT, ldc, strideC, batchCount,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT)
    # fmt: on


def dgemmStridedBatched(
    handle, transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc, strideC,
    batchCount,
) -> None:  # fmt: skip
    # fmt: off
    gemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, _DOUBLE, lda, strideA,
                         B, _DOUBLE, ldb, strideB, beta, C, _DOUBLE, ldc, strideC, batchCount,
                         CUBLAS_COMPUTE_64F, CUBLAS_GEMM_DEFAULT)
    # fmt: on


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta,
    C, Ctype, ldc, strideC, batchCount, computeType, algo,
) -> None:  # fmt: skip
    """Queue C = alpha op(A) op(B) + beta C for a stack of column-major matrices.

    alpha and beta are addresses of host numbers, read now. A and B may be float32, float64 or
    bf16, all of one type; C is float64 with float64, else float32, or bf16 with bf16.
    """
    sizes = (m, n, k, lda, ldb, ldc, batchCount)
    if handle not in _math_modes or not all(0 <= size <= _INT_MAX for size in sizes):
        raise CUBLASError(7)
    rows = (m if transa == CUBLAS_OP_N else k, k if transb == CUBLAS_OP_N else n, m)
    if any(lead < max(1, need) for lead, need in zip((lda, ldb, ldc), rows, strict=True)):
        raise CUBLASError(7)
    _check_types(Atype, Btype, Ctype, computeType)
    number = ctypes.c_double if computeType in _DOUBLES else ctypes.c_float
    alpha, beta = (number.from_address(int(place)).value for place in (alpha, beta))
    if 0 in (m, n, batchCount):
        return
    # transposed: cuBLAS's columns are NumPy's rows
    a = _stack(A, Atype, batchCount, strideA, m, k, lda, transa)
    b = _stack(B, Btype, batchCount, strideB, k, n, ldb, transb)
    c = _stack(C, Ctype, batchCount, strideC, m, n, ldc, CUBLAS_OP_N)
    apart = strideC >= ldc * (n - 1) + m
    interleaved = strideC >= m and ldc >= strideC * batchCount
    if batchCount > 1 and not (apart or interleaved):
        raise CUBLASError(7)  # matrices of the result overlap: the sums would depend on the order

    def work() -> None:
        product = alpha * np.matmul(
            _operand(a, Atype, computeType), _operand(b, Btype, computeType)
        ).astype(number, copy=False)
        if beta:
            product = product + beta * (numerics.from_bf16(c) if Ctype == _BF16 else c)
        c[...] = numerics.to_bf16(product) if Ctype == _BF16 else product

    counts.launched("cublas", a, b, c)
    streams.current().put(work)


def _check_types(a: int, b: int, c: int, compute: int) -> None:
    doubles = (a, b, c) == (_DOUBLE, _DOUBLE, _DOUBLE) and compute in _DOUBLES
    singles = (a, b, c) == (_FLOAT, _FLOAT, _FLOAT) and compute in _SINGLE
    plain = compute in (CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC)
    halves = (a, b) == (_BF16, _BF16) and c in (_FLOAT, _BF16) and plain
    if not (doubles or singles or halves):
        raise CUBLASError(15)


def _stack(
    address: int, kind: int, count: int, step: int, rows: int, columns: int, lead: int, op: int
) -> np.ndarray:
    """Return `count` matrices of rows x columns as NumPy sees them after `op`."""
    if rows == 0 or columns == 0:
        return np.empty((count, rows, columns), _DTYPES[kind])
    strides = (step, 1, lead) if op == CUBLAS_OP_N else (step, lead, 1)
    try:
        return numerics.strided(int(address), _DTYPES[kind], (count, rows, columns), strides)
    except memory.AddressError as error:
        raise memory.AddressError(f"matrix product: {error}") from None


def _operand(x: np.ndarray, kind: int, compute: int) -> np.ndarray:
    if kind == _BF16:
        return numerics.from_bf16(x)
    if compute == CUBLAS_COMPUTE_32F_FAST_TF32:
        return numerics.round_tf32(x)
    if compute == CUBLAS_COMPUTE_32F_FAST_16BF:
        return numerics.from_bf16(numerics.to_bf16(x))
    return x
