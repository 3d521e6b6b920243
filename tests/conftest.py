"""Run the suite on any number of ranks: `pytest`, or `mpirun -n 4 pytest`."""

import os

from mpi4py import MPI

if MPI.COMM_WORLD.size > 1:
    # Before NumPy is imported: ranks that share cores and each use all of them crawl.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")

pytest_plugins = ("mpi_guard",)


def pytest_collection_modifyitems(items):
    """Mark what runs differently on another number of ranks: what asks for communicators."""
    for item in items:
        if {"comm", "subcomms"} & set(item.fixturenames):
            item.add_marker("mpi")
