"""Where a rank's time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mpicnn.job.activity import Activity
from mpicnn.ops.device import DeviceTimer

if TYPE_CHECKING:
    from mpicnn.step.trace import Trace

CATEGORIES = ("communication", "convolution", "other")

_GOLDEN = 0.6180339887498949

Mark = tuple[str, str, Any]
"""What has begun: its name, its category, and when on the device."""


def sampled(number: int) -> bool:
    """Return whether step `number` of a process, counted from 0, is timed where marks cost.

    That is one step in ten, from the second on: the first one tries out how to compute. Multiples
    of the golden ratio are in no step with anything: the steps of an epoch, say, of which the last
    may be a small one.
    """
    return int(10 * (number * _GOLDEN % 1)) == 6


class StepTimer:
    """Measure where a step's time goes, by category (as in Marques' figures 6 and 8).

    They are read from the device's timer only when asked for. With a `trace`, every interval goes
    there too. `activity` is told what begins. If not `marked`, that is all, and no time is taken.
    """

    def __init__(
        self,
        timer: DeviceTimer,
        trace: Trace | None = None,
        activity: Activity | None = None,
        marked: bool = True,
    ) -> None:
        self.device_timer = timer
        self.trace = trace
        self.marked = marked
        if marked:
            timer.until()  # the first interval begins now, not where another timer ended
        self.activity = activity or Activity()
        self._seconds = dict.fromkeys(CATEGORIES, 0.0)
        self._named: dict[str, float] = {}
        self._open: list[tuple[str, str, Any, Any]] = []

    def begin(self, name: str, category: str, detail: str = "") -> Mark:
        """Begin an interval of a category; `detail` says more of it: a collective, a direction."""
        self.activity.begin(name, detail, category == "communication")
        return name, category, self.device_timer.since() if self.marked else None

    def end(self, mark: Mark) -> None:
        """End the interval that `begin` returned."""
        if self.marked:
            self._open.append((*mark, self.device_timer.until()))

    def transferred(self, name: str, start: float, end: float) -> None:
        """Record for the trace what travelled from `start` to `end` beside other work."""
        if self.trace is not None:
            self.trace.add(name, "communication", start, end, lane=2)

    @property
    def by_category(self) -> dict[str, float]:
        """Return the seconds of every category."""
        self._read()
        return self._seconds

    @property
    def by_name(self) -> Mapping[str, float]:
        """Return the seconds of every layer, and of what else has a name."""
        self._read()
        return self._named

    def _read(self) -> None:
        for name, category, since, until in self._open:
            seconds = self.device_timer.between(since, until)
            self._seconds[category] += seconds
            self._named[name] = self._named.get(name, 0.0) + seconds
            if self.trace is not None:
                end = self.device_timer.at(until)
                self.trace.add(name, category, end - seconds, end)
        self._open.clear()
