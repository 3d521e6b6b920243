"""Tell what a search has found: the ranking, why the first is first, and the certificate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mpicnn.search.search import Candidate, Found, Task
from mpicnn.text import align, counted, figure, listed

KINDS = {"communication": "sending and waiting", "convolution": "convolutions", "other": "the rest"}
FEW = 4
"""Up to so many ranks a row tells their shares."""


def summary(found: Found) -> str:
    """Return in a line what the best plan takes, what the fastest preset would, and the bound."""
    best = found.best
    presets = [each for each in found.candidates if each.plan.name != "auto"]
    beside = ""
    if presets and presets[0] is not best:
        beside = f" (plan {presets[0].plan.name}: {ms(presets[0].seconds)})"
    return f"{ms(best.seconds)} a step forecast{beside}; {certificate(found)}"


def certificate(found: Found) -> str:
    """Return in words below what no plan can be."""
    if not found.complete:
        return (
            f"{found.looked} of {counted(found.frames, 'combination')} of grid, shares, scheme and "
            f"sync were looked at, and no plan at all takes less than {ms(found.floor)}"
        )
    kinds = f"{counted(found.frames, 'combination')} of grid, shares, scheme and sync"
    if found.gap < 0.005:
        return f"no plan on {kinds} is faster"
    return f"no plan on {kinds} takes less than {ms(found.bound)}, {100 * found.gap:.0f} % less"


def ranking(found: Found, task: Task) -> list[str]:
    """Return a row for the fastest candidate of every name and scheme, the fastest first."""
    rows = [("plan", "ms", "images/s", "MB sent", *KINDS)]
    names: set[object] = set()
    for each in unlike(found.candidates):
        name = (each.plan.name, each.plan.scheme, each.plan.depth)
        if name in names:
            continue
        names.add(name)
        split = means(each)
        rows.append(
            (
                each.plan.text(FEW),
                f"{1e3 * each.seconds:.4g}",
                figure(task.batch / each.seconds),
                f"{each.sent / 1e6:.3f}",
                *(f"{1e3 * split[kind]:.4g}" for kind in KINDS),
            )
        )
    head, *lines = align(rows, 1)
    return [head, "-" * max(map(len, (head, *lines))), *lines]


def why(found: Found) -> str:
    """Return in a sentence what makes the first candidate faster than the next of another name."""
    best = found.best
    others = [each for each in found.candidates if each.plan.name != best.plan.name]
    if not others:
        return "No other plan fits."
    second = others[0]
    here, there = means(best), means(second)
    parts = [
        f"{ms(here[kind])} instead of {ms(there[kind])} of {words}"
        for kind, words in KINDS.items()
        if abs(here[kind] - there[kind]) > 0.01 * best.seconds
    ]
    if not parts:
        return f"Plan {best.plan.name} is no faster than plan {second.plan.name} to 1 %."
    return (
        f"Plan {best.plan.name} is first for {listed(parts)} on an average rank under plan "
        f"{second.plan.name}."
    )


def means(candidate: Candidate) -> dict[str, float]:
    """Return the seconds of each kind that a rank takes on average."""
    found = candidate.timeline.by_category()
    return {kind: float(np.mean(found.get(kind, 0.0))) for kind in KINDS}


def ms(seconds: float) -> str:
    """Return a time in ms with about four digits."""
    value = 1e3 * seconds
    return f"{value:.0f} ms" if value >= 1000 else f"{value:.4g} ms"


def unlike(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """Yield candidates in order, but none that takes as long as one before it, to the last digit:
    it is the same division in other words."""
    seen: set[float] = set()
    for each in candidates:
        if each.seconds not in seen:
            seen.add(each.seconds)
            yield each
