"""Marques' simulations, figures 9 to 13: what the text says of them beside three reckonings.

The figures' points are drawn, not printed: only what the text says of them can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mpicnn.division.idle import leave_idle
from mpicnn.division.presets import preset
from mpicnn.forecast.cluster import Cluster
from mpicnn.forecast.clusterfile import load_cluster
from mpicnn.forecast.papers.marques_model import DOUBLE, LARGEST, SMALLEST, Law, Way, network, short
from mpicnn.forecast.papers.marques_tables import GPU, laws
from mpicnn.forecast.papers.replay import Compared, Curve, Panel, Table, compared
from mpicnn.forecast.papers.step import step

NODES = (1, 2, 4, 8, 16, 32)
MOBILE = 10.0
"""How many times slower mobile GPUs are than those used (5.4.1)."""
HIGH_END = 4.0
"""How many times faster high-end devices are here; the paper does not say."""
LINKS = (0.1, 1.0, 10.0, 100.0)
"""Links of figures 11 to 13 beside the measured one; the paper's axis is not in its text."""

COUNTED: tuple[Way, ...] = ("equation 2", "per slave")


@dataclass(frozen=True)
class Case:
    """Say what a figure simulates: a network and batch on the machines of a file."""

    title: str
    name: str
    batch: int
    file: str


CASES = (
    Case("Figure 9: 50:500, batch 64, CPUs", SMALLEST, 64, "wifi-laptops.toml"),
    Case("Figure 9: 500:1500, batch 1,024, CPUs", LARGEST, 1024, "wifi-laptops.toml"),
    Case("Figure 10: 500:1500, batch 1,024, GPUs", LARGEST, 1024, "wifi-laptops-gpu.toml"),
)


@lru_cache
def cluster_of(file: str) -> Cluster:
    """Return a cluster that is kept beside this file."""
    return load_cluster(str(Path(__file__).with_name(file)))


def law_of(case: Case, way: Way) -> Law:
    """Return the law of the CPUs, fitted to table 4, or of the GPUs, from their stated shares."""
    return GPU.law(way) if "gpu" in case.file else laws()[way][0]


def speeds_of(case: Case, seed: int) -> tuple[float, ...]:
    """Return the speeds of 31 slaves beside the master: the real ones and others between them."""
    rates = cluster_of(case.file).machine(NODES[-1], seed).rates.convolution
    return tuple((rates[1:] / rates[0]).tolist())


def by_formula(case: Case, way: Way, seed: int) -> list[float]:
    """Return the speed-ups of a law on 1 to 32 nodes; other nodes are as fast in all ways."""
    law, slaves = law_of(case, way), speeds_of(case, seed)
    known = len(law.speeds)
    drawn = np.clip(slaves[known:], min((1.0, *law.speeds)), max(law.speeds))
    every = (*law.speeds, *drawn.tolist())
    return [law.speedup(case.name, every[: nodes - 1], case.batch) for nodes in NODES]


def simulated(case: Case, seed: int) -> list[float]:
    """Return the speed-ups that this package's own step has on 1 to 32 nodes (`master-worker`)."""
    model, found = network(case.name), []
    for nodes in NODES:
        machine = cluster_of(case.file).machine(nodes, seed)
        rates = machine.rates.convolution
        shares = tuple((rates / rates.sum()).tolist())
        plan = preset("master-worker", model, (nodes,), (shares,))
        plan, _ = leave_idle(model, plan, case.batch)
        found.append(step(model, plan, machine, case.batch, DOUBLE).seconds)
    return [found[0] / each for each in found]


@lru_cache
def series(seed: int) -> Mapping[Case, Mapping[str, list[float]]]:
    """Return the speed-ups of every case by every reckoning."""
    return {
        case: {way: by_formula(case, way, seed) for way in COUNTED}
        | {"this package": simulated(case, seed)}
        for case in CASES
    }


def node_tables(seed: int) -> list[Table]:
    """Return figures 9 and 10 as speed-ups, and what the text says of them."""
    rows, said = [], []
    for case, found in series(seed).items():
        of = case.title.split(": ", 1)[1]
        for way, ups in found.items():
            rows.append((of, way, *(f"{up:.2f}" for up in ups)))
            at = dict(zip(NODES, ups, strict=True))
            said.append(Compared(f"{of}, {way}: 32 beside 8", 1, at[32] / at[8], CLOSES[way]))
    head = ("nodes", "", *map(str, NODES))
    title = "Figures 9 and 10: speed-ups with more nodes, of speeds drawn from worst to best"
    return [
        Table(title, head, tuple(rows), NODE_NOTES, left=2),
        compared("The text: no loss from more nodes, and stable from 8 on", said),
    ]


CLOSES = {
    "equation 2": "convolution, still divided",
    "per slave": "inputs, sent to each slave",
    "this package": "convolution, still divided",
}
"""What makes the speed-up of each reckoning change beyond 8 nodes."""

NODE_NOTES = (
    "Equation 2 as printed counts the inputs once, however many slaves there are: so more nodes "
    "never cost. But sockets send them to each slave, and this is what closes table 4: then more "
    "than 8 nodes make a step slower, and the text's claim does not hold. This package's step "
    "(plan master-worker) passes inputs on in a tree, and has the way back, which equation 2 "
    "leaves out.",
)


def _limit(case: Case, slaves: Sequence[float], link: float) -> float:
    law = law_of(case, "equation 2")
    faster = Law(law.way, law.speeds, law.ratio / link, law.other)
    return faster.speedup(case.name, slaves, case.batch)


def _slaves(case: Case, count: int, factor: float) -> list[float]:
    """Return slaves as fast as the law's own are on average, times a factor."""
    return [factor * float(np.mean(law_of(case, "equation 2").speeds))] * count


Groups = Mapping[str, Callable[[Case, int], list[float]]]

KINDS: Groups = {
    "low to mid range": lambda case, count: _slaves(case, count, 1),
    "high end": lambda case, count: _slaves(case, count, HIGH_END),
}


def link_tables() -> list[Table]:
    """Return figures 11 to 13: speed-ups with unlike links and devices, by equation 2."""
    rows = []
    for case in CASES[1:]:
        of = case.title.rsplit(" ", 1)[-1]
        for kind, made in KINDS.items():
            for count in (4, 8, 32):
                ups = [f"{_limit(case, made(case, count - 1), link):.2f}" for link in LINKS]
                rows.append((f"{of}, {kind}", str(count), *ups))
    for count in (32, 128):
        mobile = _slaves(CASES[2], count - 1, 1 / MOBILE)
        ups = [f"{_limit(CASES[2], mobile, link):.2f}" for link in LINKS]
        rows.append(("mobile GPUs", str(count), *ups))
    head = ("500:1500, link times", "nodes", *(f"{link:g}" for link in LINKS))
    title = "Figures 11 to 13: speed-ups by link and device, by equation 2 as printed"
    return [Table(title, head, tuple(rows)), _said_of_links()]


def _said_of_links() -> Table:
    cpu, gpu = CASES[1:]

    def most(case: Case, factor: float, count: int = 32, link: float = 1) -> float:
        return _limit(case, _slaves(case, count - 1, factor), link)

    slow = next(link for link in np.geomspace(1, 1e-3, 301) if most(gpu, 1, 32, float(link)) < 1)
    many, few = most(gpu, 1 / MOBILE, 128), most(gpu, 1 / MOBILE)
    best = max(most(case, HIGH_END, 128, LINKS[-1]) for case in (cpu, gpu))

    def alike(case: Case) -> tuple[str, str]:
        return f"{most(case, HIGH_END):.2f} and {most(case, 1):.2f}", "holds: convolution is little"

    rows = (
        ("high end and low end are alike, 32 CPUs", *alike(cpu)),
        ("the same, 32 GPUs", *alike(gpu)),
        ("a slow link makes 32 GPUs slower than one", f"below {slow:.2f} of it", "holds"),
        ("32 mobile GPUs do not do", f"{few:.2f} and {most(gpu, 1):.2f}", "holds: convolution"),
        ("128 mobile GPUs do", f"{many:.2f} and {most(gpu, 1):.2f}", "holds nearly"),
        ("all stay below 10 (Amdahl)", f"{best:.2f} at most", "holds: other layers"),
    )
    return Table("What the text says of them", ("", "ours", "so"), rows, words=True)


def panels(seed: int) -> tuple[Panel, ...]:
    """Return the speed-ups of figures 9 and 10 to draw."""
    return tuple(
        Panel(
            case.title, "nodes", "speed-up",
            tuple(Curve(way, NODES, ups) for way, ups in found.items()),
        )
        for case, found in series(seed).items()
    )  # fmt: skip


def table_4_panel(reported: Mapping[str, Sequence[float]]) -> Panel:
    """Return table 4 to draw: the paper's figures and the fit that closes it."""
    law, _ = laws()["per slave"]
    curves = []
    for name, ups in reported.items():
        ours = [law.speedup(name, law.speeds[:count]) for count in range(len(ups) + 1)]
        nodes = tuple(range(1, len(ups) + 2))
        curves.append(Curve(short(name), nodes, ours))
        curves.append(Curve("", nodes[1:], ups, reported=True))
    return Panel("Table 4: fit (lines), reported (crosses)", "CPUs", "speed-up", tuple(curves))
