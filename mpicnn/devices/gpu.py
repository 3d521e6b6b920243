"""The GPUs that CuPy shows to this rank."""

from __future__ import annotations

from pathlib import Path
from socket import gethostname

from mpicnn.errors import DeviceError

EXTRA = "the extra gpu (gpu13 for CUDA 13)"
INSTALL = f"install CuPy with {EXTRA}, or use --device cpu"
DRIVER = Path("/proc/driver/nvidia/version")


def count() -> int:
    """Return how many GPUs this rank may use; raises DeviceError where CuPy or a driver lacks."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"device gpu: {error}; {INSTALL}") from None
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"device gpu: CUDA does not work here ({error}); use --device cpu"
        ) from None


def unusable() -> str:
    """Return why the GPUs of this host cannot be used, "" where they can or there is no driver."""
    if not DRIVER.exists():
        return ""
    try:
        count()
    except DeviceError as error:
        return str(error)
    return ""


def without_cudnn() -> str:
    """Return why the GPU in use has no cuDNN, "" where it has it."""
    from mpicnn.ops import _cudnn

    return _cudnn.missing()


def use(number: int) -> None:
    """Compute on this GPU from now on, in this thread, on a stream of its own.

    The default stream would wait for every copy of the others.
    """
    import cupy

    cupy.cuda.Device(number).use()
    cupy.cuda.Stream(non_blocking=True).use()


def describe(number: int) -> tuple[str, str]:
    """Return a GPU's name and its identity: host, PCI bus id and UUID.

    Slices of one card share its place; a UUID may end at its first byte of 0.
    """
    import cupy

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(number)
    identity = (gethostname(), runtime.deviceGetPCIBusId(number), bytes(found["uuid"]).hex())
    return found["name"].decode(), " ".join(identity)
