"""The GPUs that CuPy shows to this rank."""

from __future__ import annotations

from mpicnn.errors import DeviceError

INSTALL = "install CuPy with `pip install mpicnn[gpu]`, or use --device cpu"


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


def use(number: int) -> None:
    """Compute on this GPU from now on, in this thread, on a stream of its own.

    The default stream would wait for every copy of the others.
    """
    import cupy

    cupy.cuda.Device(number).use()
    cupy.cuda.Stream(non_blocking=True).use()


def describe(number: int) -> tuple[str, str]:
    """Return a GPU's name and what tells it from all others (its UUID)."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(number)
    return found["name"].decode(), bytes(found["uuid"]).hex()
