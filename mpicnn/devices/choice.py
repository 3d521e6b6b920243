"""What each rank computes on: its share of a host's cores, or a GPU."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpicnn import ops
from mpicnn.comm.mesh import Mesh, Wires
from mpicnn.comm.transport import choose_wires
from mpicnn.comm.wire import Wire
from mpicnn.devices import gpu
from mpicnn.devices.cores import threads_of
from mpicnn.devices.pinning import pin
from mpicnn.errors import DeviceError
from mpicnn.job.agreement import agree
from mpicnn.ops.interface import Backend

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.settings.groups import DeviceChoice


@dataclass(frozen=True)
class Device:
    """Hold what one rank computes with, and how its arrays get to other ranks.

    `name` is "cpu" or the GPU's; `way` says in a few words how arrays travel from it; `notes`
    are what the user should know of the choice; `convolution` is which methods were allowed.
    """

    ops: Backend
    threads: int = 1
    name: str = "cpu"
    wires: Wires = Wire
    way: str = "MPI"
    notes: tuple[str, ...] = ()
    convolution: str = "auto"


def choose_device(
    comm: MPI.Intracomm, machine: DeviceChoice, precision: str, environ: Mapping[str, str]
) -> Device:
    """Return this rank's device, ready to compute in a precision. Collective.

    `environ` is the process's environment. Without a number of threads asked for, ranks divide the
    cores that they may use.
    Raises DeviceError (exit code 69) on all ranks where one rank's device is not there.
    """
    mesh = Mesh(comm)
    threads = machine.threads or threads_of(mesh, environ)
    if machine.pin:
        pin(mesh, threads)
    host = socket.gethostname()
    local = mesh.texts(host)[: comm.rank].count(host)
    number = agree(comm, assigned, machine.device, local)
    backend = agree(comm, _load, machine, precision, number, threads)
    name, identity = ("cpu", "") if number is None else gpu.describe(number)
    wires, way = choose_wires(mesh, identity, machine.transport, environ)
    notes = tuple(_notes(machine, number, backend))
    return Device(backend, threads, name, wires, way, notes, machine.convolution)


def assigned(rule: str, local: int) -> int | None:
    """Return the GPU for the rank that is number `local` on its host, None for the host's cores.

    `rule` names a device per rank, the last one for all further ranks: "cpu"; "gpu:N"; "gpu", the
    host's GPUs in turn; "auto", the same where there are any, else cores.
    Raises DeviceError for a GPU that is not there.
    """
    entries = rule.split(",")
    kind, _, number = entries[min(local, len(entries) - 1)].partition(":")
    if kind == "cpu":
        return None
    try:
        there = gpu.count()
    except DeviceError:
        if kind == "auto":
            return None
        raise
    if there == 0 and kind == "auto":
        return None
    wanted = int(number) if number else local % max(1, there)
    if wanted >= there:
        raise DeviceError(
            f"device {kind}{':' + number if number else ''}: {socket.gethostname()} shows "
            f"{there or 'no'} GPU{'' if there == 1 else 's'} to this rank; use --device cpu, or "
            "ask for a GPU that is there"
        )
    return wanted


def _notes(machine: DeviceChoice, number: int | None, backend: Backend) -> Iterator[str]:
    """Yield why this rank is slower than its host might allow."""
    if number is not None:
        if reason := gpu.without_cudnn():
            yield f"{reason}, so convolutions go by columns, which is slower; install {gpu.EXTRA}"
        return
    if "auto" in machine.device.split(",") and (reason := gpu.unusable()):
        yield f"ranks compute on cores beside an NVIDIA driver: {reason}"
    if machine.backend == "auto" and backend.NAME == "numpy":
        yield f"layers run in NumPy, which is slower: {ops.missing('native')}"


def _load(machine: DeviceChoice, precision: str, number: int | None, threads: int) -> Backend:
    if number is not None:
        gpu.use(number)
    backend = ops.load(machine.backend if number is None else "cuda")
    backend.set_threads(threads)
    backend.set_convolution(machine.convolution)
    backend.set_precision(precision)
    return backend
