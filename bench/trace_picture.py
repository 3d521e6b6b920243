"""Draw one step out of timelines that mpicnn.train --trace wrote, one panel for each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

TRAVELS = 2  # the thread of a rank that shows, in the file, what is on the way
COLOURS = {
    "convolution": "#4477aa",
    "other layers": "#66ccee",
    "communication": "#ee6677",
    "on the way": "#ccbb44",
}
SHORTEST = 0.002  # of the step: what is shorter cannot be seen

Event = dict[str, Any]


def step_of(events: Sequence[Event], number: int) -> list[Event]:
    """Return one step's events of all ranks, from one update of weights to the next."""
    found = []
    for rank in {e["pid"] for e in events}:
        mine = [e for e in events if e["pid"] == rank]
        ends = sorted(e["ts"] + e["dur"] for e in mine if e["name"] == "update")
        found += [e for e in mine if ends[number - 1] <= e["ts"] < ends[number]]
    return found


def part_of(events: Sequence[Event], name: str) -> list[Event]:
    """Return the events between the first and the last one of a layer."""
    named = [e for e in events if e["name"] == name]
    if not named:
        raise SystemExit(f"--layer {name}: no event of this name in the step")
    start, end = min(e["ts"] for e in named), max(e["ts"] + e["dur"] for e in named)
    return [e for e in events if start <= e["ts"] < end]


def colour(event: Event) -> str:
    """Return an event's colour."""
    if event["tid"] == TRAVELS:
        return COLOURS["on the way"]
    return COLOURS.get(event["cat"], COLOURS["other layers"])


def draw(axes: Axes, events: Sequence[Event], title: str) -> float:
    """Draw two bars per rank, what it does above what travels; return the step's length in ms."""
    start = min(e["ts"] for e in events)
    length = max(e["ts"] + e["dur"] for e in events) - start
    ranks = sorted({e["pid"] for e in events})
    for event in events:
        if event["dur"] < SHORTEST * length:
            continue
        row = 2 * event["pid"] + (event["tid"] == TRAVELS) * 0.8
        axes.broken_barh(
            [((event["ts"] - start) / 1e3, event["dur"] / 1e3)],
            (row, 0.7),
            facecolors=colour(event),
            edgecolor="white",
            linewidth=0.3,
        )
    axes.set_yticks([2 * r + 0.75 for r in ranks], [f"rank {r}" for r in ranks])
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=10)
    return length / 1e3


def main() -> None:
    """Read the files named on the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("panels", nargs="+", metavar="TITLE=TRACE.json")
    parser.add_argument("--step", type=int, default=5, help="which traced step, 1 to 9")
    parser.add_argument("--layer", help="draw only from a layer's first event to its last")
    parser.add_argument("--out", type=Path, required=True, help="picture: .png, .svg or .pdf")
    options = parser.parse_args()
    count = len(options.panels)
    figure, rows = plt.subplots(count, sharex=True, figsize=(10, 2.1 * count), squeeze=False)
    longest = 0.0
    for axes, panel in zip(rows[:, 0], options.panels, strict=True):
        title, _, file = panel.rpartition("=")
        events = json.loads(Path(file).read_text())["traceEvents"]
        step = step_of([e for e in events if e["ph"] == "X"], options.step)
        if options.layer:
            step = part_of(step, options.layer)
        longest = max(longest, draw(axes, step, title or file))
    rows[-1, 0].set_xlim(0, longest)
    rows[-1, 0].set_xlabel("ms")
    patches = [Patch(color=value, label=name) for name, value in COLOURS.items()]
    figure.legend(handles=patches, loc="upper right", ncols=len(patches), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()
