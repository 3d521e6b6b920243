"""What a run calls when something has happened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mpicnn.run.testing import Score


class Callback(Protocol):
    """Describe what a run calls when something has happened."""

    def step(self, step: int, score: Score, count: int, rate: float) -> None:
        """Note a finished training step of `count` examples."""

    def tested(self, step: int, split: str, score: Score) -> None:
        """Note a test of the network after `step` on all examples of a split."""

    def saved(self, path: Path) -> None:
        """Note a saved checkpoint."""


class NoCallback:
    """Do nothing: the callback of all ranks but the first."""

    def step(self, step: int, score: Score, count: int, rate: float) -> None:
        """Note a finished training step."""

    def tested(self, step: int, split: str, score: Score) -> None:
        """Note a test."""

    def saved(self, path: Path) -> None:
        """Note a saved checkpoint."""
