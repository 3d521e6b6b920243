"""Stand in for cupy.cuda.stream: streams and events."""

from __future__ import annotations

import threading
from typing import Any

from hostgpu import streams

from cupy.cuda import runtime


class Event:
    """A point in a stream."""

    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self._event = streams.Event(timing=not disable_timing)
        self.ptr = self._event.handle

    @property
    def done(self) -> bool:
        """Whether it was reached; an error of the device counts as not reached."""
        return runtime.eventQuery(self.ptr) == 0

    def record(self, stream: Stream | None = None) -> None:
        self._event.record(streams.current() if stream is None else streams.find(stream.ptr))

    def synchronize(self) -> None:
        self._event.wait()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two events, which must have been reached."""
    first, last = start_event._event, end_event._event
    if not (first.timing and last.timing and first.mark and last.mark):
        raise runtime.CUDARuntimeError(400)
    if first.reached is None or last.reached is None:
        raise runtime.CUDARuntimeError(600)
    return 1e3 * (last.reached - first.reached)


class _BaseStream:
    """A stream's handle and its device."""

    def __init__(self, ptr: int, device_id: int) -> None:
        self.ptr = ptr
        self.device_id = device_id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def _check_device(self) -> None:
        here = runtime.getDevice()
        if self.device_id not in (-1, here):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id})"
                f" does not match with the current device ({here})"
            )

    def __enter__(self) -> _BaseStream:
        self._check_device()
        _thread.entered.append((runtime.getDevice(), self))
        _make_current(self)
        return self

    def __exit__(self, *args: Any) -> None:
        """Make the stream of the `with` outside current, not one that `use` had made so."""
        device, _ = _thread.entered.pop()
        outer = [stream for number, stream in _thread.entered if number == device]
        _make_current(outer[-1] if outer else Stream.null)

    def use(self) -> _BaseStream:
        self._check_device()
        _make_current(self)
        return self

    @property
    def done(self) -> bool:
        return runtime.streamQuery(self.ptr) == 0

    def synchronize(self) -> None:
        runtime.streamSynchronize(self.ptr)

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        mark = event._event.mark
        if mark is not None:
            streams.find(self.ptr).put(lambda: None, mark)

    def launch_host_func(self, callback: Any, arg: Any) -> None:
        streams.find(self.ptr).put(lambda: callback(arg))

    @property
    def is_non_blocking(self) -> bool:
        return not streams.find(self.ptr).blocking


class Stream(_BaseStream):
    """A stream; `Stream.null` is the device's own, which waits for all blocking ones."""

    null: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        if ptds:
            raise NotImplementedError("the stand-in has no per-thread default streams")
        if null:
            super().__init__(0, -1)
        else:
            queue = streams.device().open(blocking=not non_blocking)
            self._device = queue.device
            super().__init__(queue.handle, queue.device.number)

    def __del__(self) -> None:
        if getattr(self, "ptr", 0):
            self._device.close(self.ptr)


class ExternalStream(_BaseStream):
    """A stream known by its handle."""

    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(ptr, device_id)


Stream.null = Stream(null=True)


class _Thread(threading.local):
    """The streams that a thread made current, and those that it entered, with their devices.

    All of them live on.
    """

    def __init__(self) -> None:
        self.current: dict[int, _BaseStream] = {}
        self.entered: list[tuple[int, _BaseStream]] = []


_thread = _Thread()


def _make_current(stream: _BaseStream) -> None:
    device = runtime.getDevice() if stream.device_id == -1 else stream.device_id
    streams.set_current(stream.ptr, device)
    _thread.current[device] = stream


def get_current_stream(device_id: int = -1) -> _BaseStream:
    """Return the thread's current stream on a device, by default the current one."""
    device = runtime.getDevice() if device_id == -1 else device_id
    return _thread.current.get(device, Stream.null)
