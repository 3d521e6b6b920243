"""Say how the GPU multiplies: with which precision, and by which methods it convolves.

One `Settings` object serves all threads and GPUs of the process, like the mode of a device. It is
the only state that the functions of the backend share, apart from what they compile.
"""

from __future__ import annotations

from dataclasses import dataclass

import cupy
import numpy as np
from numpy.typing import DTypeLike

from mpicnn import precision as precisions

_TENSOR_CORES = 80  # the compute capability, times ten, of the first GPUs that take TF32 and bf16


@dataclass
class Settings:
    """What products of float32 arrays round their operands to, and whether transforms are allowed.

    "float32" and "float64" round nothing: then products have the precision of their arrays.
    """

    precision: str = "float32"
    transforms: bool = True


settings = Settings()


def set_precision(precision: str) -> None:
    """Let convolutions and fully connected layers multiply in this precision from now on.

    "tf32" keeps 10 bits of the operands' fractions, "bf16" 7; sums and results stay float32.
    Arrays of float64 are multiplied in float64 whatever is set. Raises DeviceError where the GPU
    has no such products and ValueError for another word.
    """
    if precision not in precisions.NAMES:
        names = ", ".join(precisions.NAMES)
        raise ValueError(f"precision must be one of {names}, not {precision!r}")
    if precision in ("tf32", "bf16"):
        capability = int(cupy.cuda.Device().compute_capability)
        if capability < _TENSOR_CORES:
            gpu = f"a GPU of compute capability {capability / 10:.1f}"
            raise precisions.refuse(precision, gpu, f"products in {precision}, as from 8.0 on")
    settings.precision = precision


def set_convolution(methods: str) -> None:
    """Let convolutions use any method ("auto", as at first) or no transforms ("direct")."""
    if methods not in ("auto", "direct"):
        raise ValueError(f"methods must be auto or direct, not {methods!r}")
    settings.transforms = methods == "auto"


def precision_of(dtype: DTypeLike) -> str:
    """Return in which of the precisions arrays of this dtype are multiplied."""
    if np.dtype(dtype) == np.float64:
        return "float64"
    return "float32" if settings.precision == "float64" else settings.precision
