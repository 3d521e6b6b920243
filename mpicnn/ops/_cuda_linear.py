"""Multiply by the matrices of fully connected layers on the GPU."""

from __future__ import annotations

from typing import Any

import cupy

from mpicnn.ops._cuda_arrays import Array
from mpicnn.ops._cuda_gemm import finish, multiply
from mpicnn.ops._cuda_precision import precision_of
from mpicnn.ops._cuda_rounded import read


def linear(x: Array, w: Array, b: Array | None, relu: bool = False) -> Array:
    """Return y = x w^T + b for x (n, c), w (o, c) and b (o,)."""
    y = cupy.empty((x.shape[0], w.shape[0]), x.dtype)
    multiply(_matrix(x), _matrix(w).T, y)
    finish(y, b, relu)
    return y


def linear_dx(dy: Array, w: Array) -> Array:
    """Return the gradient of `linear` by x, given dy (n, o)."""
    dx = cupy.empty((dy.shape[0], w.shape[1]), dy.dtype)
    multiply(_matrix(dy), _matrix(w), dx)
    return dx


def linear_dw(x: Array, dy: Array, dw: Array | None = None) -> Array:
    """Return the gradient of `linear` by w, given dy (n, o); added to `dw`, in place, if given.

    Raises ValueError unless the rows of `dw` are runs of memory.
    """
    add = dw is not None
    if dw is None:
        dw = cupy.empty((dy.shape[1], x.shape[1]), x.dtype)
    elif dw.dtype != x.dtype or (dw.size and dw.strides[1] != dw.itemsize):
        raise ValueError("dw must have the dtype of x and unit stride along its rows")
    multiply(_matrix(dy).T, _matrix(x), dw, add)
    return dw


def _matrix(x: Any) -> Array:
    """Return a matrix as it lies, for cuBLAS takes any order, or its bits where bf16 is read."""
    return read(x) if precision_of(x.dtype) == "bf16" else x
