"""Draw what steps take on more and more nodes: the time by kind of work, and the speed-up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpicnn.errors import escaped
from mpicnn.forecast.scaling_text import Row
from mpicnn.run.picture import figure, save

MOST_APART = 20
"""Bars of which one is longer by this factor than another are drawn as parts of a step."""

KINDS = {"convolution": "tab:blue", "other": "tab:green", "communication": "tab:red"}


def draw_scaling(rows: Sequence[Row], title: str, path: Path) -> None:
    """Draw the rows of a simulation into a PNG file, as Marques' figures 9 to 13 show them.

    Raises UserError without matplotlib, and where the file cannot be written.
    """
    drawn = figure("pictures", 10, 4.2)
    # names are no formulas, whatever they hold
    drawn.suptitle(escaped(title), fontsize=9, parse_math=False)
    left, right = drawn.subplots(1, 2)
    nodes = [row.point.nodes for row in rows]
    _times(left, rows, nodes)
    right.plot(nodes, [row.speedup / row.efficiency for row in rows], "--", c="0.6", label="ideal")
    right.plot(nodes, [row.speedup for row in rows], "o-", ms=4, label="forecast")
    known = [(row, row.measured) for row in rows if row.measured is not None]
    if known:
        first, took = known[0]  # what was measured is compared with what was measured
        beside = took / first.point.seconds
        found = [row.speedup * row.point.seconds / step * beside for row, step in known]
        right.plot([row.point.nodes for row, _ in known], found, "x", c="k", label="measured")
    right.set(xlabel="nodes", ylabel="speed-up")
    if len(nodes) > 1 and nodes[-1] > 8 * nodes[0]:
        right.set(xscale="log", yscale="log")
        right.set_xticks(nodes, map(str, nodes), rotation=90 if len(nodes) > 8 else 0)
        right.minorticks_off()
    right.grid(alpha=0.3)
    right.legend()
    save(drawn, path)


def _times(axes: Any, rows: Sequence[Row], nodes: Sequence[int]) -> None:
    """Draw a bar for each row, a part for each kind of work: in s, or in % if steps are unlike."""
    places, below = np.arange(len(rows)), np.zeros(len(rows))
    steps = np.array([row.point.seconds for row in rows])
    unlike = steps.max() > MOST_APART * steps.min()
    unit = steps / 100 if unlike else np.ones(len(rows))
    for kind, colour in KINDS.items():
        parts = np.array([getattr(row.point, kind) for row in rows]) / unit
        axes.bar(places, parts, bottom=below, color=colour, label=kind)
        below = below + parts
    measured = np.array([np.nan if row.measured is None else row.measured for row in rows])
    if not np.isnan(measured).all():
        axes.plot(places, measured / unit, "x", c="k", label="measured")
    axes.set_xticks(places, map(str, nodes), rotation=90 if len(nodes) > 8 else 0)
    axes.set(xlabel="nodes", ylabel="part of a step, %" if unlike else "step, s")
    axes.legend()
