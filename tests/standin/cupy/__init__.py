"""Stand in for CuPy where there is no GPU (see `hostgpu`): the part that a backend needs.

What CuPy lacks is lacking here too, and what is refused there (host arrays among device arrays,
implicit conversion, copies between them by assignment) is refused here.
"""

import builtins as _builtins

import numpy as _np
from numpy import (  # noqa: F401 - CuPy has NumPy's dtypes and constants under its own name
    bool_,
    dtype,
    e,
    float16,
    float32,
    float64,
    inf,
    int8,
    int16,
    int32,
    int64,
    integer,
    nan,
    newaxis,
    pi,
    uint8,
    uint16,
    uint32,
    uint64,
)

from cupy import cuda  # noqa: F401
from cupy._array import ndarray  # noqa: F401
from cupy._creation import *  # noqa: F403
from cupy._functions import *  # noqa: F403
from cupy._memory import get_default_memory_pool  # noqa: F401
from cupy._raw import RawKernel, RawModule  # noqa: F401

__version__ = "14.2.0"


def get_array_module(*args):
    """Return cupy if any argument is a device array, else numpy."""
    import cupy

    return cupy if _builtins.any(isinstance(a, ndarray) for a in args) else _np


def is_available():
    """Return whether a device is visible."""
    return cuda.is_available()
