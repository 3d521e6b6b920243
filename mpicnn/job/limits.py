"""How long a job may be without progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

START_S: Final = 600.0
"""MPI may take this long to start, unless a shorter limit is given: ranks may come one by one."""


@dataclass(frozen=True)
class Limits:
    """Say after how long without progress (s) there is a warning, and an end."""

    warning: float = 60.0
    abort: float = math.inf

    @classmethod
    def of(cls, warning: float, abort: float) -> Self:
        """Return limits of which 0 means never."""
        return cls(warning or math.inf, abort or math.inf)

    @classmethod
    def early(cls, argv: Sequence[str]) -> Self:
        """Return the limits that hold until rank 0 has read the settings: those of right flags."""
        found = {"--stall-warning": cls.warning, "--stall-abort": 0.0}
        words = [word for arg in argv for word in arg.split("=", 1)]
        for flag, value in pairwise(words):
            if flag in found:
                with suppress(ValueError):
                    found[flag] = max(0.0, float(value))
        return cls.of(*found.values())

    @property
    def first(self) -> float:
        """Return the shorter one."""
        return min(self.warning, self.abort)

    @property
    def start(self) -> float:
        """Return how long MPI may take to start."""
        return max(1.0, min(START_S, self.abort))
