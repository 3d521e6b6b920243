"""The GPUs that CuPy shows to this rank."""

from __future__ import annotations

from pathlib import Path
from socket import gethostname

from mpicnn.errors import DeviceError

INSTALL = "install CuPy with the extra gpu (gpu13 for CUDA 13), or use --device cpu"
CUDNN = "install the extra gpu (gpu13 for CUDA 13)"
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


def slow() -> str:
    """Return why convolutions are slower here than they could be, "" where they are not."""
    from mpicnn.ops import _cudnn

    reason = _cudnn.missing()
    return reason and f"{reason}, so convolutions go by columns, which is slower; {CUDNN}"


def use(number: int) -> None:
    """Compute on this GPU from now on, in this thread, on a stream of its own.

    The default stream would wait for every copy of the others.
    """
    import cupy

    cupy.cuda.Device(number).use()
    cupy.cuda.Stream(non_blocking=True).use()


def describe(number: int) -> tuple[str, str]:
    """Return a GPU's name and what tells it from all others: host, place, and UUID.

    Slices of one card share its place; a UUID may end at its first byte of 0.
    """
    import cupy

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(number)
    identity = (gethostname(), runtime.deviceGetPCIBusId(number), bytes(found["uuid"]).hex())
    return found["name"].decode(), " ".join(identity)
