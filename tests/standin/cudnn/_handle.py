"""Handles of the library, each with the stream that its work goes to."""

from __future__ import annotations

import itertools

from hostgpu import streams

_numbers = itertools.count(1)
_streams: dict[int, int] = {}


def create_handle() -> int:
    handle = next(_numbers)
    _streams[handle] = 0
    return handle


def destroy_handle(handle: int) -> None:
    del _streams[handle]


def set_stream(handle: int, stream: int) -> None:
    _check(handle)
    streams.find(stream)
    _streams[handle] = stream


def get_stream(handle: int) -> int:
    _check(handle)
    return _streams[handle]


def _check(handle: object) -> None:
    if not isinstance(handle, int) or handle not in _streams:
        raise RuntimeError(f"CUDNN_STATUS_BAD_PARAM: {handle!r} is no handle")


def backend_version() -> int:
    return 92800


def backend_version_string() -> str:
    return "9.28.0"
