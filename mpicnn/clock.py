"""Where a rank's time goes."""

from __future__ import annotations

from time import perf_counter

KINDS = ("communication", "convolution", "other")


class Clock:
    """Seconds spent, by kind (as in Marques' figures 6 and 8) and by step name."""

    def __init__(self) -> None:
        self.by_kind = dict.fromkeys(KINDS, 0.0)
        self.by_name: dict[str, float] = {}

    def add(self, name: str, kind: str, since: float) -> None:
        """Book the seconds from `since` (of `perf_counter`) until now."""
        seconds = perf_counter() - since
        self.by_kind[kind] += seconds
        self.by_name[name] = self.by_name.get(name, 0.0) + seconds
