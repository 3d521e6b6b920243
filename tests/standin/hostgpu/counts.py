"""Count what the devices of this process were given: launches, bytes, events, views."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hostgpu.memory import LOCK


@dataclass
class Counts:
    """Hold how often each kernel, library function and copy was launched, and what else was.

    `bytes` are those of the arrays that launches were given, each once per launch: what they read
    and write at least, unless that is a part only. `events` were recorded, `views` made of arrays.
    """

    launches: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    events: int = 0
    views: int = 0

    def launched(self, name: str, *arrays: Any) -> None:
        """Count one launch on some arrays."""
        with LOCK:
            self.launches[name] += 1
            self.bytes += sum(int(array.nbytes) for array in arrays)

    def clear(self) -> None:
        """Begin to count anew."""
        with LOCK:
            self.launches.clear()
            self.bytes = self.events = self.views = 0


counts = Counts()
