"""Stand in for cupy.cuda.runtime: the CUDA runtime's functions, under their own names."""

from __future__ import annotations

import uuid
from typing import Any

from hostgpu import streams

from cupy import _memory

memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost = 0, 1, 2
memcpyDeviceToDevice, memcpyDefault = 3, 4
streamDefault, streamNonBlocking = 0, 1
streamLegacy, streamPerThread = 1, 2
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4
CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF = 0, 1, 2, 14
cudaDevAttrMultiProcessorCount = 16
_NOT_READY = 600
is_hip = False

_ERRORS = {
    1: "cudaErrorInvalidValue: invalid argument",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    600: "cudaErrorNotReady: device not ready",
}
_ATTRIBUTES = {
    cudaDevAttrMultiProcessorCount: 132,
    75: 9,
    76: 0,
    1: 1024,
    8: 48 << 10,
    10: 32,
    38: 50 << 20,
    39: 2048,
    81: 228 << 10,
    97: 227 << 10,
}


class CUDARuntimeError(RuntimeError):
    """An error code of the CUDA runtime, as `status`."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS.get(status, f"CUDA error {status}"))


def driverGetVersion() -> int:
    return 12090


def runtimeGetVersion() -> int:
    return 12090


def getDeviceCount() -> int:
    return streams.visible()


def getDevice() -> int:
    return streams.device().number


def setDevice(device: int) -> None:
    try:
        streams.use(device)
    except ValueError:
        raise CUDARuntimeError(101) from None


def deviceSynchronize() -> None:
    streams.device().finish()


def deviceGetAttribute(attrib: int, device: int) -> int:
    if attrib not in _ATTRIBUTES:
        raise CUDARuntimeError(1)
    return _ATTRIBUTES[attrib]


def deviceGetPCIBusId(device: int) -> str:
    return f"0000:{device + 1:02X}:00.0"


def deviceCanAccessPeer(device: int, peerDevice: int) -> int:
    return int(device != peerDevice)


def getDeviceProperties(device: int) -> dict[str, Any]:
    try:
        number = streams.device(device).number
    except ValueError:
        raise CUDARuntimeError(101) from None
    return {
        "name": b"Stand-in H100",
        # one machine: the same device has the same name in every process
        "uuid": uuid.uuid5(uuid.NAMESPACE_OID, f"standin {number}").bytes,
        "totalGlobalMem": _memory.TOTAL_MEMORY,
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": (2147483647, 65535, 65535),
        "maxThreadsPerMultiProcessor": 2048,
        "sharedMemPerBlock": 48 << 10,
        "sharedMemPerBlockOptin": 227 << 10,
        "sharedMemPerMultiprocessor": 228 << 10,
        "regsPerBlock": 65536,
        "l2CacheSize": 50 << 20,
        "clockRate": 1980000,
        "memoryClockRate": 2619000,
        "memoryBusWidth": 5120,
        "pciBusID": number + 1,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "ECCEnabled": 1,
        "asyncEngineCount": 3,
    }


def memGetInfo() -> tuple[int, int]:
    pool = _memory.get_default_memory_pool()
    return _memory.TOTAL_MEMORY - pool.total_bytes(), _memory.TOTAL_MEMORY


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    if size:
        _memory.copy(_queue(stream), dst, src, size)


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    if size:
        queue = _queue(0)
        _memory.copy(queue, dst, src, size)
        queue.finish(queue.issued)


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    _memory.fill(_queue(stream), ptr, value, size)


def streamSynchronize(stream: int) -> None:
    queue = _queue(stream)
    queue.finish(queue.issued)


def streamQuery(stream: int) -> int:
    queue = _queue(stream)
    return 0 if queue.poll(queue.issued) else _NOT_READY


def eventQuery(event: int) -> int:
    try:
        return 0 if streams.find_event(event).poll() else _NOT_READY
    except ValueError:
        raise CUDARuntimeError(400) from None


def _queue(stream: int) -> streams.Queue:
    try:
        return streams.find(0 if stream == streamLegacy else stream)
    except ValueError:
        raise CUDARuntimeError(400) from None
