"""Choose the best state of a run by its tests, and end a run that gets no better."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpicnn.checkpoint import verify
from mpicnn.errors import UserError
from mpicnn.run.testing import Score
from mpicnn.text import counted

if TYPE_CHECKING:
    from mpicnn.settings.groups import Choosing

SHOWN = {"loss": "loss", "top1": "top-1", "top5": "top-5"}


@dataclass(frozen=True)
class Tested:
    """Hold a test: on which split, of the network after which step, and its score."""

    split: str
    step: int
    score: Score


@dataclass(frozen=True)
class Choice:
    """Hold the best test of a run so far, and how many came after it.

    `by` is the metric to choose by: "loss", "top1", "top5", or "" for none. `step` and `score` are
    of the best test, None before there is one.
    """

    by: str = ""
    step: int | None = None
    score: Score | None = None
    tests: int = 0

    def better(self, score: Score) -> bool:
        """Tell whether a score is better than the best so far. One that is not finite is not."""
        new = getattr(score, self.by)
        if self.score is None or not isfinite(new):
            return isfinite(new)
        old = getattr(self.score, self.by)
        return bool(new < old if self.by == "loss" else new > old)

    def after(self, step: int, score: Score, better: bool) -> Choice:
        """Return the choice after one more test."""
        if better:
            return Choice(self.by, step, score)
        return replace(self, tests=self.tests + 1)

    def ended(self, patience: int) -> str:
        """Return why a run ends after so many tests without a better one; "" if it goes on."""
        if not 0 < patience <= self.tests:
            return ""
        better = "lower" if self.by == "loss" else "higher"
        return (
            f"ended early: no {better} {SHOWN[self.by]} in {counted(self.tests, 'test')} "
            f"(patience {patience})"
        )

    def told(self, split: str, file: str) -> str:
        """Return what was best in the tests on `split` and in which file it is; "" for nothing."""
        if self.score is None:
            return ""
        value = getattr(self.score, self.by)
        shown = f"{value:.4f}" if self.by == "loss" else f"{100 * value:.2f} %"
        return f"{split}: best {SHOWN[self.by]} {shown} at step {self.step}, kept as {file}"

    def saved(self) -> dict[str, Any]:
        """Return what JSON can hold of it, for checkpoints."""
        score = None if self.score is None else list(astuple(self.score))
        return {"by": self.by, "step": self.step, "score": score, "tests": self.tests}

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Choice:
        """Return what `saved` gave."""
        score = None if saved["score"] is None else Score(*saved["score"])
        return cls(saved["by"], saved["step"], score, saved["tests"])


def metric(settings: Choosing, split: str) -> str:
    """Return the metric to choose by, "" for none, where `split` is that of the tests."""
    if settings.best == "auto":
        return "top1" if split == "validation" or settings.patience else ""
    return "" if settings.best == "off" else settings.best


def refused(found: Choice, by: str, file: Path, warn: Callable[[str], None]) -> str:
    """Return why a run that chooses `by` cannot go on with the choice `found`, "" if it can.

    `file` is to hold its best state. `warn` is told.
    """
    reason = ""
    if found.by != by:
        reason = f"best {by}: before, it was {found.by or 'off'}"
    elif found.step is not None:
        try:
            verify(file)
        except UserError as error:
            reason = str(error)
    if reason:
        warn(f"{reason}; the best is chosen anew from here on")
    return reason
