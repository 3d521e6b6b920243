"""Where a rank's time goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mpicnn.trace import Trace

KINDS = ("communication", "convolution", "other")


class Timer(Protocol):
    """Give marks of a device's time: of when it has done what it was given so far."""

    def since(self) -> Any:
        """Return a mark for the beginning of what is given next."""
        ...

    def until(self) -> Any:
        """Return a mark for the end of what was given last."""
        ...

    def at(self, mark: Any) -> float:
        """Return when the mark was reached (of `perf_counter`, s), waiting for it."""
        ...

    def between(self, since: Any, until: Any) -> float:
        """Return the seconds between two marks, waiting for them."""
        ...


class Clock:
    """Seconds spent, by kind (as in Marques' figures 6 and 8).

    They are read from the device's timer only when asked for. With a `trace`, every interval goes
    there too.
    """

    def __init__(self, timer: Timer, trace: Trace | None = None) -> None:
        self.timer = timer
        self.trace = trace
        self._kinds = dict.fromkeys(KINDS, 0.0)
        self._open: list[tuple[str, str, Any, Any]] = []

    def now(self) -> Any:
        """Return a mark to book the time since."""
        return self.timer.since()

    def add(self, name: str, kind: str, since: Any) -> None:
        """Book the time from the mark `since` until now."""
        self._open.append((name, kind, since, self.timer.until()))

    def travelled(self, name: str, start: float, end: float) -> None:
        """Note for the trace what was under way from `start` to `end`, beside other work."""
        if self.trace is not None:
            self.trace.add(name, "communication", start, end, lane=2)

    @property
    def by_kind(self) -> dict[str, float]:
        """Return the seconds of every kind."""
        self._read()
        return self._kinds

    def _read(self) -> None:
        for name, kind, since, until in self._open:
            seconds = self.timer.between(since, until)
            self._kinds[kind] += seconds
            if self.trace is not None:
                end = self.timer.at(until)
                self.trace.add(name, kind, end - seconds, end)
        self._open.clear()
