"""Run the suite on any number of ranks: `pytest`, or `mpirun -n 4 pytest`."""

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mpi4py import MPI
from mpi_deal import needs_ranks

if MPI.COMM_WORLD.size > 1:
    # Before NumPy is imported: ranks that share cores and each use all of them crawl.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")


def gpu_at_hand() -> bool:
    """Return whether CuPy and a device that its driver sees are here."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
        and find_spec("cupy") is not None
    )


if not gpu_at_hand():
    sys.path.insert(0, str(Path(__file__).parent / "standin"))

pytest_plugins = ("backends", "mpi_guard")


def pytest_collection_modifyitems(items):
    """Mark what a GPU is asked for, and what runs differently on another number of ranks."""
    for item in items:
        if needs_ranks(item):
            item.add_marker("mpi")
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.name.startswith(("test_cuda", "test_gpu")) or "cuda" in params.values():
            item.add_marker("gpu")


@pytest.fixture(autouse=True)
def gpu_as_it_was():
    """Leave the next test the first GPU, its default stream, and single precision."""
    yield
    if cuda := sys.modules.get("mpicnn.ops.cuda"):
        cuda.xp.cuda.Device(0).use()
        cuda.xp.cuda.Stream.null.use()
        cuda.set_precision("float32")
