"""Import the compiled kernels in the variant for this CPU and give them a matrix product.

The kernels are modules of their own in site-packages, not parts of the package `mpicnn`: they are
found wherever `mpicnn` itself is imported from, be it a source tree that comes first on sys.path.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# The signatures that the functions of this package expect: module.cpp has the same number.
ABI = 8


def _import_core() -> Any:
    """Return the module of kernels; raises ImportError where none, or another version, is built."""
    if find_spec("_mpicnn_core") is None:
        raise ImportError(
            "the native kernels were not built; install a C++ compiler and reinstall mpicnn"
        )
    core = _checked("_mpicnn_core")
    for level in range(core.x86_64_level(), 2, -1):
        # a compiler that does not know -march=x86-64-v4, or -v3, left that variant out
        with suppress(ModuleNotFoundError):
            return _checked(f"_mpicnn_core_v{level}")
    return core


def _checked(name: str) -> Any:
    core: Any = import_module(name)
    if ABI != core.ABI:
        raise ImportError(
            f"{core.__file__} was built from another version of mpicnn; install it again"
        )
    return core


def _use_blas(core: Any) -> bool:
    """Hand the core the matrix products of OpenBLAS; return whether there is one.

    The library is a copy of its own beside NumPy's: the core keeps it at one thread, because the
    core's threads call it side by side, without any effect on NumPy.
    """
    try:
        import scipy_openblas32 as openblas
    except ImportError:
        return False
    path = Path(openblas.get_lib_dir()) / openblas.get_library(fullname=True)
    try:
        library = ctypes.CDLL(str(path))
        functions = (
            library.scipy_cblas_sgemm,
            library.scipy_cblas_dgemm,
            library.scipy_openblas_set_num_threads,
        )
    except (OSError, AttributeError):
        return False
    core.use_blas(*(ctypes.cast(function, ctypes.c_void_p).value for function in functions))
    return True


core = _import_core()
HAS_BLAS = _use_blas(core)
