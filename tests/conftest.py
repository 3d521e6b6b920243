"""Run the suite on any number of ranks: `pytest`, or `mpirun -n 4 pytest`."""

import ctypes
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mpi4py import MPI

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

pytest_plugins = ("mpi_guard",)


def pytest_collection_modifyitems(items):
    """Mark what runs differently on another number of ranks: what asks for communicators."""
    for item in items:
        if {"comm", "subcomms"} & set(item.fixturenames):
            item.add_marker("mpi")


@pytest.fixture(autouse=True)
def one_rank_is_enough(request):
    """Let one rank run what asks for the GPU, or its stand-in, and not for communicators."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    gpu_alone = request.path.name.startswith(("test_cuda", "test_standin"))
    if gpu_alone or "cuda" in params.values():
        request.getfixturevalue("subcomm")(1)
