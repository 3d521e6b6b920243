"""Krizhevsky's results beside forecasts of his schemes.

They are known at second hand: the ratios of the hours confirm the speed-ups.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mpicnn.forecast.papers.fitting import Values, rms
from mpicnn.forecast.papers.owt_machine import Way, hours, seconds, server
from mpicnn.forecast.papers.replay import (
    AGREES,
    CLOSED,
    UNEXPLAINED,
    Compared,
    Table,
    compared,
    percent,
)

SCHEMES = ("a", "b", "c")


class Result(NamedTuple):
    """Hold a row of the results: batch of convolutions and of fully connected layers, hours."""

    gpus: int
    batch: int
    head_batch: int
    hours: float
    speedup: float

    @property
    def varies(self) -> bool:
        """Say whether fully connected weights change after every round."""
        return self.head_batch < self.batch


RESULTS = (
    Result(1, 128, 128, 98.05, 1.0),
    Result(2, 256, 256, 50.24, 1.95),
    Result(2, 256, 128, 50.90, 1.93),
    Result(4, 512, 512, 26.20, 3.74),
    Result(4, 512, 128, 26.78, 3.66),
    Result(8, 1024, 1024, 15.68, 6.25),
    Result(8, 1024, 128, 15.91, 6.16),
)


def one_gpu() -> Table:
    """Return the row that the machine's rate is made from, to be held against the results."""
    took = hours(seconds(1, Way(), server(1)), 1)
    return compared(
        "One K20: 90 epochs of 1,281,167 images at batch 128",
        [Compared("hours", RESULTS[0].hours, took)],
        ("The FLOP/s of the machine's file are made from this row; no other row is.",),
    )


@lru_cache
def speedups(scheme: str, bandwidth: float, by_round: bool) -> dict[int, float]:
    """Return the speed-ups of a scheme on 1, 2, 4 and 8 GPUs of the server.

    All links have the `bandwidth`, bytes/s; for 0 they are those of its file.
    """
    alone = seconds(1, Way(), server(1))
    way = Way(scheme=scheme, by_round=by_round)
    return {
        gpus: gpus * alone / seconds(gpus, way, server(gpus, bandwidth)) for gpus in (1, 2, 4, 8)
    }


def left(scheme: str, bandwidth: float) -> Values:
    """Return the logarithms of ours over the results of whole batches on 2, 4 and 8 GPUs."""
    ours = speedups(scheme, bandwidth, False)
    rows = [each for each in RESULTS if not each.varies and each.gpus > 1]
    return np.log([ours[each.gpus] / each.speedup for each in rows])


@lru_cache
def fit(scheme: str) -> float:
    """Return the bandwidth of all links, bytes/s, with which a scheme comes closest to them.

    By golden section (Kiefer 1953) between 0.1 and 10 GB/s, to 1 %.
    """
    golden = (np.sqrt(5) - 1) / 2
    low, high = np.log(1e8), np.log(1e10)
    while high - low > 0.01:
        near, far = high - golden * (high - low), low + golden * (high - low)
        if rms(left(scheme, float(np.exp(near)))) < rms(left(scheme, float(np.exp(far)))):
            high = far
        else:
            low = near
    return float(np.exp((low + high) / 2))


def results_table() -> Table:
    """Return the results table beside forecasts: the file's links, and one fitted bandwidth."""
    band = fit("c")
    rows = []
    for each in RESULTS[1:]:
        as_filed = {s: speedups(s, 0.0, each.varies)[each.gpus] for s in SCHEMES}
        fitted = speedups("c", band, each.varies)[each.gpus]
        off, then = as_filed["c"] / each.speedup - 1, fitted / each.speedup - 1
        closed = "agrees" if abs(off) <= AGREES else f"links of {band / 1e9:.1f} GB/s"
        cells = ["-" if each.varies and s == "a" else f"{as_filed[s]:.2f}" for s in SCHEMES]
        rows.append(
            (
                f"{each.gpus}", f"({each.batch},{each.head_batch})", f"{each.speedup:.2f}", *cells,
                percent(off), f"{fitted:.2f}", percent(then),
                closed if abs(then) <= AGREES else UNEXPLAINED,
            )
        )  # fmt: skip
    return Table(
        "Results: speed-ups over one GPU, reported (at second hand) and forecast by scheme",
        ("GPUs", "batch", "paper", "(a)", "(b)", "(c)", "off (c)", "(c) fitted", "off", CLOSED),
        tuple(rows),
        _result_notes(),
        words=True,
    )


def _result_notes() -> tuple[str, ...]:
    found = [(scheme, fit(scheme)) for scheme in SCHEMES]
    lines = [
        f"  ({scheme})  {band / 1e9:.2f} GB/s leaves {100 * rms(left(scheme, band)):.1f} % rms"
        for scheme, band in found
    ]
    return (
        "With links of 6 GB/s (k20-server.toml), which PCIe 2.0 allows, all schemes are faster "
        "than reported. One bandwidth for all links, the only number fitted, and to the three rows "
        "of whole batches, closes the table; the rows of variable batches are forecast with it.",
        *lines,
        "So little of PCIe's 8 GB/s is much lost. Whether messages were so slow, or something else "
        "takes as long, such as reading images or waiting for each other, the table cannot say.",
    )
