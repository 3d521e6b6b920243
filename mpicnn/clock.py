"""Where a rank's time goes."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpicnn.trace import Trace

KINDS = ("communication", "convolution", "other")


class Clock:
    """Seconds spent, by kind (as in Marques' figures 6 and 8) and by step name.

    With a `trace`, every interval goes there too.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        self.by_kind = dict.fromkeys(KINDS, 0.0)
        self.by_name: dict[str, float] = {}
        self.trace = trace

    def add(self, name: str, kind: str, since: float) -> None:
        """Book the seconds from `since` (of `perf_counter`) until now."""
        now = perf_counter()
        self.by_kind[kind] += now - since
        self.by_name[name] = self.by_name.get(name, 0.0) + now - since
        if self.trace is not None:
            self.trace.add(name, kind, since, now)

    def travelled(self, name: str, start: float, end: float) -> None:
        """Note for the trace what was under way from `start` to `end`, beside other work."""
        if self.trace is not None:
            self.trace.add(name, "communication", start, end, lane=2)
