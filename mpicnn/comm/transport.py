"""How arrays travel between the devices of a job: chosen once, the same way on all ranks."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from warnings import catch_warnings, simplefilter

from mpi4py import MPI

from mpicnn.comm.mesh import Mesh, Wires
from mpicnn.comm.wire import Wire
from mpicnn.errors import UserError


def choose_wires(
    mesh: Mesh, identity: str, asked: str, environ: Mapping[str, str]
) -> tuple[Wires, str]:
    """Return what makes this rank's wires, and the way's name. Collective.

    `identity` is that of the rank's GPU, "" on a CPU. `asked` is "auto", "host", "mpi" or "nccl":
    NCCL where every rank has a GPU of its own, MPI on GPU memory where the library is known to
    take it, else by way of host memory; never found out by trying, which ends in a crash.
    Raises UserError where NCCL is asked for and does not fit.
    """
    everyone = mesh.texts(identity)
    gpus = [i for i in everyone if i]
    obstacle = _against_nccl(everyone)
    if not obstacle and asked in ("auto", "nccl"):
        obstacle = next(filter(None, mesh.texts(_nccl_missing())), "")
    if asked == "nccl" and obstacle:
        raise UserError(f"transport nccl: {obstacle}; use auto, host or mpi")
    if asked in ("auto", "nccl") and not obstacle:
        return _nccl(environ), "NCCL"
    if not gpus or len(everyone) == 1:
        return Wire, "MPI"
    # Open MPI declares it for messages and blocking collectives; others crash (its FAQ on CUDA,
    # "Which MPI APIs do NOT work with CUDA-aware?")
    declared = "Open MPI" not in mesh.library and cuda_aware(environ)
    aware = asked == "mpi" or (asked == "auto" and declared)
    way = "MPI on GPU memory" if aware else "MPI by way of host memory"
    return (_over_mpi(aware) if identity else Wire), way


def cuda_aware(environ: Mapping[str, str]) -> bool:
    """Say whether the MPI library declares that it takes addresses of GPU memory.

    Open MPI and MPICH answer `MPIX_Query_cuda_support`; Cray's MPICH is told by a variable.
    """
    if environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1":
        return True
    for name in (MPI.__file__, None):
        with suppress(OSError, AttributeError):
            query = ctypes.CDLL(name).MPIX_Query_cuda_support
            query.restype = ctypes.c_int
            return bool(query() == 1)
    return False


def _against_nccl(identities: Iterable[str]) -> str:
    """Return why these GPUs cannot talk over NCCL, "" where they can."""
    everyone = list(identities)
    if len(everyone) == 1:
        return "there is only one rank"
    if "" in everyone:
        return "a rank computes on a CPU"
    if len(set(everyone)) < len(everyone):
        return "ranks share a GPU, which NCCL does not allow"
    return ""


def _nccl_missing() -> str:
    with catch_warnings():
        simplefilter("ignore")  # CuPy's advice of several lines
        from cupy.cuda import nccl
    return "" if nccl.available else "CuPy finds no NCCL library (extra nccl, or nccl13)"


def _over_mpi(aware: bool) -> Wires:
    module = import_module("mpicnn.comm.wire_gpu")
    kind = module.AwareWire if aware else module.StagedWire
    line = module.Line()
    return lambda comm: kind(comm, line)


def _nccl(environ: Mapping[str, str]) -> Wires:
    import cupy

    wires = import_module("mpicnn.comm.wire_nccl").NcclWire
    messages = _over_mpi(cuda_aware(environ))
    stream = cupy.cuda.Stream(non_blocking=True)
    return lambda comm: wires(comm, stream, messages(comm))
