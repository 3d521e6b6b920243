"""Krizhevsky 2014, "One weird trick", replayed (arXiv 1404.5997)."""

from __future__ import annotations

from mpicnn.forecast.papers.owt_results import RESULTS, fit, one_gpu, results_table, speedups
from mpicnn.forecast.papers.owt_schemes import (
    GPUS,
    groups_table,
    on_many,
    schemes_table,
    servers_table,
)
from mpicnn.forecast.papers.replay import Curve, Panel, Replay


def owt() -> Replay:
    """Return the results table, the schemes on up to 64 GPUs and the closing ideas beside ours."""
    lines = [Curve(label, GPUS, found) for label, found in on_many().items()]
    fitted = speedups("c", fit("c"), by_round=False)
    whole = [each for each in RESULTS if not each.varies]
    return Replay(
        "Krizhevsky 2014: One weird trick for parallelizing convolutional neural networks",
        (one_gpu(), results_table(), schemes_table(), servers_table(),
         groups_table()),
        (
            Panel(
                "Results: forecast (c), reported", "GPUs", "speed-up",
                (
                    Curve("links fitted", tuple(fitted), tuple(fitted.values())),
                    Curve("reported", [each.gpus for each in whole],
                          [each.speedup for each in whole], reported=True),
                ),
            ),
            Panel("Schemes on more GPUs", "GPUs", "speed-up", tuple(lines), log=True),
        ),
    )  # fmt: skip
