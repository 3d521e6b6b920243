"""Stand in for cupy.cuda.device."""

from __future__ import annotations

import threading
from typing import Any

from hostgpu import streams

from cupy.cuda import runtime

_thread = threading.local()


class Device:
    """One device, by number."""

    def __init__(self, device: int | Device | None = None) -> None:
        self.id = runtime.getDevice() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def use(self) -> Device:
        runtime.setDevice(self.id)
        return self

    def __enter__(self) -> Device:
        _thread.__dict__.setdefault("stack", []).append(runtime.getDevice())
        return self.use()

    def __exit__(self, *args: Any) -> None:
        runtime.setDevice(_thread.stack.pop())

    def synchronize(self) -> None:
        streams.device(self.id).finish()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "MultiProcessorCount": 132,
            "MaxThreadsPerBlock": 1024,
            "MaxSharedMemoryPerBlock": 48 << 10,
            "MaxSharedMemoryPerBlockOptin": 227 << 10,
            "MaxThreadsPerMultiProcessor": 2048,
            "WarpSize": 32,
            "L2CacheSize": 50 << 20,
            "ComputeCapabilityMajor": 9,
            "ComputeCapabilityMinor": 0,
        }

    @property
    def cublas_handle(self) -> int:
        from cupy_backends.cuda.libs import cublas

        handles = _thread.__dict__.setdefault("cublas", {})
        return handles.setdefault(self.id, cublas.create())

    @property
    def mem_info(self) -> tuple[int, int]:
        with self:
            return runtime.memGetInfo()

    @property
    def pci_bus_id(self) -> str:
        return runtime.deviceGetPCIBusId(self.id)


def get_device_id() -> int:
    """Return the number of the thread's current device."""
    return runtime.getDevice()


def get_cublas_handle() -> int:
    """Return the cuBLAS handle of the thread and its current device."""
    return Device().cublas_handle
