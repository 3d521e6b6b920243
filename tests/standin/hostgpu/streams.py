"""Streams: queues of work that is done when somebody waits for it, and not before.

A real device would be working meanwhile. Doing nothing until it must is what shows a missing
synchronisation every time.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakValueDictionary

from hostgpu.counts import counts
from hostgpu.memory import LOCK

Work = Callable[[], object]
PENDING = object()  # what work returns that must wait for other ranks, and be called again
_NAP = 2e-4  # seconds


class Mark(NamedTuple):
    """A point in a queue: everything up to the entry with this number."""

    queue: Queue
    number: int


class Queue:
    """Hold one stream's work in order; `handle` 0 is the device's null stream."""

    def __init__(self, device: Device, handle: int, blocking: bool) -> None:
        self.device = device
        self.handle = handle
        self.blocking = blocking
        self.issued = 0
        self.finished = 0
        self.error: BaseException | None = None
        self._entries: deque[tuple[int, Work, tuple[Mark, ...]]] = deque()

    @property
    def mark(self) -> Mark:
        """The end of the queue as it is now."""
        return Mark(self, self.issued)

    @property
    def idle(self) -> bool:
        """Whether nothing waits here."""
        return self.finished == self.issued

    def put(self, work: Work, *waits: Mark) -> Mark:
        """Append work that may be done when all of `waits` is done; return the point after it."""
        with LOCK:
            self.issued += 1
            waits += self.device.implied(self)
            self._entries.append((self.issued, work, waits))
            return self.mark

    def finish(self, number: int) -> None:
        """Do everything up to the entry `number`, and first what it waits for."""
        while not self.advance(number):
            time.sleep(_NAP)  # other ranks are not there yet, and may need this device's lock

    def poll(self, number: int) -> bool:
        """Return whether everything up to `number` was done; if not, do one entry."""
        with self.device.running:
            self._raise()
            if self.finished >= number:
                return True
            self._step()
            return False

    def advance(self, number: int) -> bool:
        """Do what can be done up to the entry `number`; return whether that is everything."""
        with self.device.running:
            self._raise()
            while self.finished < number:
                if not self._step():
                    return False
            return True

    def _step(self) -> bool:
        """Do one entry, unless it has to wait for other ranks; return whether it was done."""
        number, work, waits = self._entries[0]
        for mark in waits:
            if not mark.queue.advance(mark.number):
                return False
        try:
            ended = work() is not PENDING
        except BaseException:
            self._end(number)
            raise
        if ended:
            self._end(number)
        return ended

    def _end(self, number: int) -> None:
        self._entries.popleft()
        self.finished = number

    def _raise(self) -> None:
        """Raise what went wrong while nobody was waiting."""
        error, self.error = self.error, None
        if error is not None:
            raise error


class Device:
    """Hold the queues of one device; `running` is held by the thread that does their work."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.running = threading.RLock()
        self._handles = itertools.count(0x1000, 16)
        self.queues = {0: Queue(self, 0, blocking=True)}

    def open(self, blocking: bool) -> Queue:
        """Return a new queue."""
        with LOCK:
            handle = next(self._handles) + (self.number << 32)
            self.queues[handle] = Queue(self, handle, blocking)
            return self.queues[handle]

    def close(self, handle: int) -> None:
        """Forget a queue once its work is done."""
        with LOCK:
            for other in [q for q in self.queues.values() if q.handle == handle and q.idle]:
                del self.queues[other.handle]

    def implied(self, queue: Queue) -> tuple[Mark, ...]:
        """Return what the null stream's rule adds: it and blocking streams wait for each other."""
        if not queue.blocking:
            return ()
        others = self.queues.values() if queue.handle == 0 else (self.queues[0],)
        return tuple(q.mark for q in others if q.blocking and q is not queue and not q.idle)

    def finish(self) -> None:
        """Do all the work of the device."""
        for queue in list(self.queues.values()):
            queue.finish(queue.issued)


class Event:
    """A point in a stream that others wait for, with the time at which it was reached."""

    def __init__(self, timing: bool) -> None:
        self.timing = timing
        self.handle = next(_event_handles)
        _events[self.handle] = self
        self.mark: Mark | None = None
        self.reached: float | None = None

    def record(self, queue: Queue) -> None:
        """Move the event to the end of the queue."""
        self.reached = None

        def reach() -> None:
            if self.mark is not None and self.mark.number == number:
                self.reached = time.perf_counter()

        with LOCK:
            counts.events += 1
            number = queue.issued + 1
            self.mark = queue.put(reach)

    def wait(self) -> None:
        """Do all work in front of the event."""
        if self.mark is not None:
            self.mark.queue.finish(self.mark.number)

    def poll(self) -> bool:
        """Return whether the event was reached; if not, do a little of the work before it."""
        return self.mark is None or self.mark.queue.poll(self.mark.number)


class _Thread(threading.local):
    """What a thread has of its own: its current device, and a current stream on each."""

    def __init__(self) -> None:
        self.device = 0
        self.current: dict[int, int] = {}


_thread = _Thread()
_event_handles = itertools.count(0x10, 16)
_events: WeakValueDictionary[int, Event] = WeakValueDictionary()
_devices: dict[int, Device] = {}
_lock = threading.Lock()


def visible() -> int:
    """Return how many devices there are to see: 0, unless STANDIN_GPUS says otherwise.

    Device 0 works in any case: tests of operations ask for no device.
    """
    return int(os.environ.get("STANDIN_GPUS", "0"))


def device(number: int | None = None) -> Device:
    """Return a device, the thread's current one by default; ValueError if there is none such."""
    number = _thread.device if number is None else number
    if not 0 <= number < max(1, visible()):
        raise ValueError(f"no device {number}")
    with _lock:
        if number not in _devices:
            _devices[number] = Device(number)
        return _devices[number]


def use(number: int) -> None:
    """Make a device the thread's current one."""
    _thread.device = device(number).number


def current() -> Queue:
    """Return the thread's current stream on its current device."""
    here = device()
    return here.queues[_thread.current.get(here.number, 0)]


def set_current(handle: int, number: int) -> None:
    """Make a stream the thread's current one on a device."""
    _thread.current[device(number).number] = handle


def find(handle: int) -> Queue:
    """Return the stream with this handle; 0 is the current device's null stream."""
    owner = _devices.get(handle >> 32) if handle else device()
    if owner is None or handle not in owner.queues:
        raise ValueError(f"no stream {handle:#x}")
    return owner.queues[handle]


def find_event(handle: int) -> Event:
    """Return the event with this handle."""
    try:
        return _events[handle]
    except KeyError:
        raise ValueError(f"no event {handle:#x}") from None


class _Driver:
    """Carry out what other ranks wait for, as a device would, whatever this rank's threads do."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def drive(self, mark: Mark) -> None:
        """Do everything up to the mark, in a thread of the driver."""
        with self._lock:
            self._marks.append(mark)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            for mark in list(self._marks):
                try:
                    ended = mark.queue.advance(mark.number)
                except BaseException as error:
                    mark.queue.error, ended = error, False
                if ended:
                    self._marks.remove(mark)
            with self._lock:
                if not self._marks:
                    self._thread = None
                    return
            time.sleep(_NAP)


drive = _Driver().drive
