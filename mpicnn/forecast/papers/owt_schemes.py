"""Krizhevsky's schemes on more GPUs than he had, and the ideas with which he closes."""

from __future__ import annotations

from functools import lru_cache
from math import inf, prod

from mpicnn.forecast.papers.owt_machine import (
    RESTRICTED,
    Way,
    megabytes,
    network,
    seconds,
    server,
    servers,
)
from mpicnn.forecast.papers.owt_results import fit
from mpicnn.forecast.papers.replay import Table

GPUS = (1, 2, 4, 8, 16, 32, 64)
GROUPS = (1, 2, 4, 8)
SERVER = 8


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


AFTERWARDS = "data, messages alone"
"""Plan data where nothing is computed while messages travel."""


def afterwards(gpus: int) -> float:
    """Return the speed-up of plan data where its messages travel when all is computed."""
    way = WAYS["data"]
    sent = 1e6 * megabytes(gpus, way) / fit("c")
    return gpus * alone() / (seconds(gpus, way, server(gpus, inf)) + sent)


@lru_cache
def on_many() -> dict[str, list[float]]:
    """Return the speed-ups of each way on up to 64 GPUs, 128 images each."""
    found = {label: [speedup(gpus, way) for gpus in GPUS] for label, way in WAYS.items()}
    return {AFTERWARDS: [afterwards(gpus) for gpus in GPUS]} | found


def schemes_table() -> Table:
    """Return the schemes on up to 64 GPUs, in one row and as a grid of two levels."""
    rows = tuple(
        (
            label,
            *(f"{up:.2f}" for up in ups),
            *(f"{megabytes(n, WAYS.get(label, WAYS['data'])):.0f}" for n in (8, 64)),
        )
        for label, ups in on_many().items()
    )
    return Table(
        "Schemes on up to 64 GPUs, 128 images each, every GPU with a link as fitted: speed-ups",
        ("GPUs", *map(str, GPUS), "MB on 8", "on 64"),
        rows,
        (
            "MB are the most that one GPU sends in a step. In one row every GPU gets the "
            "activities of all images, which grow with the GPUs; gradients, which plan data sends, "
            "do not. So OWT is ahead of plan data up to 16 GPUs, if messages of that travel alone. "
            "Here they travel beside the convolutions, and plan data is ahead everywhere. (b) has "
            "one link at work where (c) has all. A grid of two levels, one of the paper's closing "
            "ideas, keeps activities in a row.",
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
