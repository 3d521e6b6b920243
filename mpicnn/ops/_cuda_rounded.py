"""Round arrays to bf16 once for all products that read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import cupy
import numpy as np

from mpicnn.ops._cuda_arrays import THREADS, Array, blocks, cells, empty_cells, launch
from mpicnn.ops._cuda_precision import precision_of
from mpicnn.ops.interface import Shape

BF16 = np.dtype(np.uint16)  # the bits of bf16 values: neither NumPy nor CuPy knows the type


@dataclass(frozen=True, eq=False)
class Rounded:
    """A float32 array as products in bf16 read it: its bits (n, c, ...), channels last in memory.

    What they were rounded from may change afterwards. Copies with more channels are kept, too.
    """

    bits: Array
    dtype: np.dtype[Any]
    _filled: dict[Shape, Array] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return tuple(self.bits.shape)

    def filled(self, dims: Shape) -> Array:
        """Return the bits (n, c, h, w) with zeros up to these dims, of which n and c are longer."""
        if dims == self.shape:
            return self.bits
        if dims not in self._filled:
            n, c, *space = dims
            rows = self.bits.transpose(0, 2, 3, 1).reshape(-1, self.shape[1])
            more = _rows("bf16_filled", rows, prod((n, *space)), c)
            self._filled[dims] = more.reshape(n, *space, c).transpose(0, 3, 1, 2)
        return self._filled[dims]


def operand(x: Any) -> Any:
    """Return x as products and convolutions read it: rounded, in bf16, else as it is."""
    return x if precision_of(x.dtype) != "bf16" or 0 in x.shape else rounded(x)


def rounded(x: Any) -> Rounded:
    """Return an array as products in bf16 read it; what is `Rounded` is returned as it is."""
    if isinstance(x, Rounded):
        return x
    y = empty_cells(x.shape, BF16)
    if y.size:
        sizes = 1, y.size, y, 1, y.size
        grid = blocks(-(-y.size // 8))
        launch("bf16_rows", "products.cu", x.dtype, grid, THREADS, cells(x), *sizes)
    return Rounded(y, x.dtype)


def read(x: Any) -> Any:
    """Return what kernels read of an operand: an array with its channels last in memory."""
    if isinstance(x, Rounded):
        return x.bits
    return rounded(x).bits if precision_of(x.dtype) == "bf16" else cells(x)


def bf16_rows(x: Array, rows: int, columns: int) -> Array:
    """Return x, float32 in C order, as bf16 with zeros behind its columns and below its rows."""
    return _rows("bf16_rows", x, rows, columns)


def _rows(name: str, x: Array, rows: int, columns: int) -> Array:
    y = cupy.empty((rows, columns), BF16)
    if y.size:
        grid = blocks(rows * -(-columns // 8))
        args = x, *x.shape, y, *y.shape
        launch(name, "products.cu", np.dtype(np.float32), grid, THREADS, *args)
    return y
