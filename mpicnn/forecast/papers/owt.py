"""Krizhevsky 2014, "One weird trick", replayed (arXiv 1404.5997).

Its results are known at second hand: the ratios of the hours confirm the speed-ups.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np

from mpicnn.forecast.papers.fitting import Values, rms
from mpicnn.forecast.papers.owt_machine import (
    RESTRICTED,
    Way,
    hours,
    megabytes,
    network,
    seconds,
    server,
    servers,
)
from mpicnn.forecast.papers.replay import (
    AGREES,
    CLOSED,
    UNEXPLAINED,
    Compared,
    Curve,
    Panel,
    Replay,
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

GPUS = (1, 2, 4, 8, 16, 32, 64)
GROUPS = (1, 2, 4, 8)
SERVER = 8


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


WAYS = {
    "data": Way("data"),
    "(a)": Way(),
    "(b)": Way(scheme="b"),
    "(c)": Way(scheme="c"),
    "(c), rows of 8": Way(scheme="c", row=SERVER),
    "(c), rows of 8, groups 8": Way(scheme="c", row=SERVER, groups=8),
    "the same, groups apart": Way(scheme="c", row=SERVER, groups=8, apart=True),
}
"""What is compared on more GPUs. Rows of 8 are a grid of two levels: rows divide the batch, the
eight GPUs of each divide fully connected layers. Groups apart: each GPU of a row has one."""


@lru_cache
def alone() -> float:
    """Return the seconds of a step of one GPU."""
    return seconds(1, Way(), server(1))


def speedup(gpus: int, way: Way) -> float:
    """Return a speed-up on GPUs that each have a link of the bandwidth that closes the results."""
    return gpus * alone() / seconds(gpus, way, server(gpus, fit("c")))


@lru_cache
def on_many() -> dict[str, list[float]]:
    """Return the speed-ups of each way on up to 64 GPUs, 128 images each."""
    return {label: [speedup(gpus, way) for gpus in GPUS] for label, way in WAYS.items()}


def schemes_table() -> Table:
    """Return the schemes on up to 64 GPUs, in one row and as a grid of two levels."""
    rows = tuple(
        (
            label,
            *(f"{up:.2f}" for up in on_many()[label]),
            *(f"{megabytes(n, way):.0f}" for n in (8, 64)),
        )
        for label, way in WAYS.items()
    )
    return Table(
        "Schemes on up to 64 GPUs, 128 images each, every GPU with a link as fitted: speed-ups",
        ("GPUs", *map(str, GPUS), "MB on 8", "on 64"),
        rows,
        (
            "MB are the most that one GPU sends in a step. In one row every GPU gets the "
            "activities of all images, which grow with the GPUs; gradients, which plan data sends, "
            "do not, and they travel beside convolutions. (b) has one link at work where (c) has "
            "all. A grid of two levels, one of the paper's closing ideas, keeps the activities in "
            "a row.",
        ),
    )


def servers_table() -> Table:
    """Return ways on servers of eight that share one link to the others."""
    rows = []
    for label in ("data", *tuple(WAYS)[3:]):
        ups = [
            SERVER * n * alone() / seconds(SERVER * n, WAYS[label], servers(n)) for n in (2, 4, 8)
        ]
        rows.append((label, *(f"{up:.2f}" for up in ups)))
    return Table(
        "Several servers of 8 GPUs, a row in each (k20-servers.toml): speed-ups over one GPU",
        ("GPUs", "16", "32", "64"),
        tuple(rows),
        (
            "The GPUs of a server share its link, 10 Gbit/s, to the others. Messages inside a "
            "server do not wait for each other here, which favours all rows alike.",
        ),
    )


def groups_table() -> Table:
    """Return what fully connected layers of restricted connectivity save."""
    rows = []
    for groups in GROUPS:
        specs = network(groups).param_specs()
        held = sum(prod(spec.shape) for spec in specs.values())
        weights = sum(prod(specs[f"{name}.w"].shape) for name in RESTRICTED)
        ways = [
            Way("data", groups=groups),
            Way(scheme="c", row=SERVER, groups=groups),
            Way(scheme="c", row=SERVER, groups=groups, apart=True),
        ]
        able = [way for way in ways if not way.apart or groups >= SERVER]
        cells = [f"{megabytes(SERVER, way):.0f}" for way in able] + ["-"] * (3 - len(able))
        for gpus in (8, 64):
            cells += [f"{speedup(gpus, way):.2f}" for way in able] + ["-"] * (3 - len(able))
        rows.append((f"{groups}", f"{held / 1e6:.1f}", f"{2e-6 * weights:.1f}", *cells))
    of = ("data", "(c)", "apart")
    return Table(
        "Restricted connectivity, the other closing idea: fc6 and fc7 in groups, rows of 8 GPUs",
        (
            "groups", "M parameters", "MFLOP", *(f"MB {way}" for way in of),
            *(f"{gpus} {way}" for gpus in (8, 64) for way in of),
        ),
        tuple(rows),
        (
            "MFLOP are those of fc6 and fc7 for one image, forward; MB the most that one of 8 GPUs "
            "sends in a step; then speed-ups on 8 and 64 GPUs over one GPU with the whole network. "
            "Weights, and under plan data their gradients, shrink with the groups. Under (c) "
            "activities are sent, which stay as many, unless each GPU has groups of its own "
            "(letter g of a plan): then it gets the inputs of its own groups alone, nothing "
            "travels between fc6 and fc7, and fc8 (letter c) adds up what is as long as the "
            "classes. It is another network, which learns otherwise: only its cost is shown.",
        ),
    )  # fmt: skip
