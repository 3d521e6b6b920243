"""Convolve on the GPU by copying windows into lines of a matrix and multiplying matrices.

It takes every convolution in every precision. The lines lie in pieces of whole examples: as many
as fit into `COLUMN_BYTES`, or one. So that, or one example's lines if they are more, is the memory
that it needs besides its arguments and, in bf16, their rounded copies, which callers may have made
before. Images and kernels have
their channels last in memory; so have the lines, and a group of channels is a run in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from mpicnn.ops._cuda_arrays import Array, blocks, launch
from mpicnn.ops._cuda_gemm import finish, multiply
from mpicnn.ops._cuda_rounded import BF16, read
from mpicnn.ops._cuda_shape import ConvShape

COLUMN_BYTES = 256 << 20
_FLOAT = np.dtype(np.float32)  # what kernels for bf16 are compiled with
_BLOCK = (32, 8)  # threads along a line, and lines


def forward(
    shape: ConvShape, x: Array, w: Array, y: Array, b: Array | None = None, relu: bool = False
) -> None:
    """Set y to the convolution of x with w, plus b, if given, then ReLU of it, if wished."""
    x, kernels = read(x), _kernels(shape, _rows(read(w)))
    for examples in _pieces(shape, x):
        columns = _columns(shape, _some(x, examples))
        multiply(columns, kernels.transpose(0, 2, 1), _groups(shape, _rows(_some(y, examples))))
    finish(y, b, relu)


def dx(shape: ConvShape, dy: Array, w: Array, dx: Array) -> None:
    """Set dx to the gradient by x."""
    dy, kernels = read(dy), _kernels(shape, _rows(read(w)))
    for examples in _pieces(shape, dx):
        part = _some(dx, examples)
        gradient = _groups(shape, _rows(_some(dy, examples)))
        if shape.pointwise:
            multiply(gradient, kernels, _groups(shape, _rows(part)))
            continue
        columns = cupy.empty((gradient.shape[1], shape.groups * shape.taps), dx.dtype)
        multiply(gradient, kernels, _groups(shape, columns))
        _launch("col2im", shape, dx.dtype, columns, part, _rows(part).shape[0])


def dw(shape: ConvShape, x: Array, dy: Array, dw: Array) -> None:
    """Set dw to the gradient by w."""
    x, dy, out = read(x), read(dy), _kernels(shape, _rows(dw))
    for examples in _pieces(shape, x):
        gradient = _groups(shape, _rows(_some(dy, examples)))
        columns = _columns(shape, _some(x, examples))
        multiply(gradient.transpose(0, 2, 1), columns, out, add=examples.start > 0)


def _pieces(shape: ConvShape, x: Array) -> Iterator[slice]:
    """Yield runs of examples whose lines, in the dtype of x, fit into `COLUMN_BYTES`."""
    each = shape.y[2] * shape.y[3] * shape.groups * shape.taps * x.itemsize
    count = shape.x[0] if shape.pointwise else max(1, COLUMN_BYTES // each)
    for first in range(0, shape.x[0], count):
        yield slice(first, first + count)


def _some(x: Array, examples: slice) -> Array:
    """Return these examples of x, or x itself where they are all."""
    return x if examples.start == 0 and examples.stop >= len(x) else x[examples]


def _columns(shape: ConvShape, x: Array) -> Array:
    """Return the lines of all outputs of x as operands (groups, outputs, values)."""
    if shape.pointwise:
        return _groups(shape, _rows(x))
    outputs = x.shape[0] * shape.y[2] * shape.y[3]
    columns = cupy.empty((outputs, shape.groups * shape.taps), x.dtype)
    name, like = ("im2col_bf16", _FLOAT) if x.dtype == BF16 else ("im2col", x.dtype)
    _launch(name, shape, like, x, columns, outputs)
    return _groups(shape, columns)


def _launch(
    name: str, shape: ConvShape, dtype: Any, source: Array, target: Array, pixels: int
) -> None:
    """Start a kernel for which a row of threads does the work of one of so many pixels."""
    grid = blocks(pixels, _BLOCK[1])
    launch(name, "columns.cu", dtype, grid, _BLOCK, source, target, pixels, *shape.sizes)


def _rows(x: Array) -> Array:
    """Return a view (n h w, c) of x (n, c, h, w), which has its channels last in memory."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _groups(shape: ConvShape, rows: Array) -> Array:
    """Return a view (groups, rows, values of a group)."""
    return rows.reshape(rows.shape[0], shape.groups, -1).transpose(1, 0, 2)


def _kernels(shape: ConvShape, rows: Array) -> Array:
    """Return a view (groups, outputs of a group, values that one sees) of w's rows."""
    return rows.reshape(shape.groups, -1, shape.taps)
