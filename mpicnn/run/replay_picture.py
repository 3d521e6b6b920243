"""Draw what is replayed of a paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpicnn.forecast.papers.replay import Panel, Replay
from mpicnn.run.picture import figure, save

PANEL = 5.0, 4.2
"""Width and height of a panel, inches."""


def draw_replay(replay: Replay, path: Path) -> None:
    """Draw the panels of a replay side by side into a PNG file.

    Raises UserError without matplotlib, and where the file cannot be written.
    """
    width, height = PANEL
    drawn = figure("pictures", width * len(replay.panels), height)
    drawn.suptitle(replay.title, fontsize=9)
    places = drawn.subplots(1, len(replay.panels), squeeze=False)[0]
    for axes, panel in zip(places, replay.panels, strict=True):
        _panel(axes, panel)
    save(drawn, path)


def _panel(axes: Any, panel: Panel) -> None:
    """Draw lines; what is reported as crosses in the colour of the line before."""
    for curve in panel.curves:
        if curve.reported:
            colour = axes.lines[-1].get_color() if axes.lines else "k"
            axes.plot(curve.x, curve.y, "x", c=colour, label=curve.label or None)
        else:
            axes.plot(curve.x, curve.y, "o-", ms=3, label=curve.label)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.set_title(panel.title, fontsize=9)
    if panel.log:
        axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
