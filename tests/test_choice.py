"""Which test of a run is the best, and after how many without a better one it ends."""

from __future__ import annotations

import json
import math
from typing import Any

from mpicnn.run.choosing import Choice, metric
from mpicnn.run.testing import Score
from mpicnn.settings.definitions import Settings


def test_better_is_what_the_metric_says() -> None:
    one = Score(1.0, 0.5, 0.75)
    for by, better, worse in (
        ("loss", Score(0.9, 0, 0), Score(1.1, 1, 1)),
        ("top1", Score(9, 0.51, 0), Score(0, 0.49, 1)),
        ("top5", Score(9, 0, 0.76), Score(0, 1, 0.74)),
    ):
        choice = Choice(by).after(3, one, True)
        assert choice.better(better) and not choice.better(worse)
        assert not choice.better(one), "the first of equal ones is kept"
        assert choice.after(4, worse, False) == Choice(by, 3, one, 1)
    nothing = Score(math.nan, 0, 0)
    assert not Choice("loss").better(nothing) and Choice("loss").better(one)
    assert not Choice("loss", 1, one).better(nothing)
    for choice in (Choice("top1", 7, one, 2), Choice("loss", tests=3)):
        assert Choice.of(json.loads(json.dumps(choice.saved()))) == choice


def test_when_a_run_ends_early() -> None:
    choice = Choice("top1", 7, Score(1, 1, 1), 3)
    assert choice.ended(0) == choice.ended(4) == Choice("top1").ended(1) == ""
    assert choice.ended(3) == "ended early: no higher top-1 in 3 tests (patience 3)"
    assert "no lower loss in 1 test (" in Choice("loss", tests=1).ended(1)


def test_what_is_chosen_by() -> None:
    def by(best: Any, patience: int, split: str) -> str:
        return metric(Settings(best=best, patience=patience), split)

    assert by("auto", 0, "validation") == by("auto", 3, "test") == "top1"
    assert by("auto", 0, "test") == Choice().by == by("off", 0, "validation") == ""
    assert by("loss", 0, "test") == "loss"
