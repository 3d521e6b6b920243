"""Stand in for cupy.cuda: devices, streams, events, memory."""

from cupy_backends.cuda.libs import cublas  # noqa: F401

from cupy._memory import (  # noqa: F401
    Memory,
    MemoryPointer,
    MemoryPool,
    PinnedMemoryPointer,
    alloc_pinned_memory,
)
from cupy.cuda import compiler, device, memory, runtime, stream  # noqa: F401
from cupy.cuda.device import Device, get_cublas_handle, get_device_id  # noqa: F401
from cupy.cuda.stream import (  # noqa: F401
    Event,
    ExternalStream,
    Stream,
    get_current_stream,
    get_elapsed_time,
)


def is_available() -> bool:
    """Return whether a device is visible."""
    return runtime.getDeviceCount() > 0


def set_allocator(allocator: None = None) -> None:
    """Do without a pool, as the stand-in does anyway: every array has memory of its own."""
    if allocator is not None:
        raise NotImplementedError("the stand-in takes no allocator")


def alloc(size: int) -> MemoryPointer:
    """Return fresh device memory."""
    return MemoryPointer(Memory(size), 0)
