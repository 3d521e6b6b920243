"""Marques' tables 4 and 5, and what the text says of them, beside what volume and speed give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpicnn.forecast.papers.fitting import rms
from mpicnn.forecast.papers.marques_model import (
    BATCH,
    DOUBLE,
    LARGEST,
    NETWORKS,
    OTHER,
    SMALLEST,
    TABLE_4,
    TABLE_5,
    WAYS,
    Law,
    Way,
    equation_2,
    fit_table_4,
    network,
    short,
    speeds_if_free,
)
from mpicnn.forecast.papers.replay import (
    AGREES,
    CLOSED,
    UNEXPLAINED,
    Compared,
    Table,
    percent,
    share,
)

STATED = 5e6 / 8
"""The link that section 5.3.4 states, bytes/s: 5 Mbit/s."""
MEANT = 5e6
"""The link that is plausible, bytes/s: 5 MB/s."""
HOUR = 3600.0

BATCHES = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Shares:
    """Hold what figure 8 and the text say of steps on 2 and 3 GPUs: parts of the whole time.

    Other layers take "about the same" as communication where there are 3.
    """

    two: float = 0.19
    three: float = 0.30

    @property
    def other(self) -> float:
        """Return the part of other layers in a step on one GPU."""
        return self.three / TABLE_5[LARGEST][1]

    @property
    def limit(self) -> float:
        """Return the speed-up where neither convolution nor communication takes time."""
        return 1 / self.other

    @property
    def speeds(self) -> tuple[float, float]:
        """Return the speeds of the second and third GPU beside the first's."""
        rest = [1 / speedup for speedup in TABLE_5[LARGEST]]
        rest = [t - c * t - self.other for t, c in zip(rest, (self.two, self.three), strict=True)]
        sums = [(1 - self.other) / t for t in rest]
        return sums[0] - 1, sums[1] - sums[0]

    def law(self, way: Way) -> Law:
        """Return the law under which 3 GPUs train the largest network as stated."""
        unit = Law(way, self.speeds, 1.0, dict.fromkeys(NETWORKS, self.other))
        sent = unit.parts(LARGEST, self.speeds)[2]
        ratio = self.three / TABLE_5[LARGEST][1] / sent
        return Law(way, self.speeds, ratio, unit.other)


GPU = Shares()


@lru_cache
def laws() -> Mapping[Way, tuple[Law, float]]:
    """Return the law of each way that fits table 4 best, and the rms of what it leaves."""
    return {way: fit_table_4(way) for way in WAYS}


def volume_table() -> Table:
    """Return what equation 2 says of the largest network, and how long that takes."""
    rows = []
    for padded in (True, False):
        sent = equation_2(network(LARGEST, padded), BATCH).elements * DOUBLE
        rows.append(
            (
                "padding 2" if padded else "no padding", f"{sent / 1e9:.1f}",
                f"{sent / STATED / HOUR:.1f}", f"{sent / MEANT / 60:.0f}",
            )
        )  # fmt: skip
    return Table(
        "Equation 2 for 500:1500: one batch of 1,024 images, forward, in double",
        ("", "GB", "h at 5 Mbit/s", "min at 5 MB/s"),
        tuple(rows),
        _link_notes(),
    )


def least_alone() -> float:
    """Return the seconds that a batch takes PC1 alone at least, by table 4, at 5 Mbit/s: as many
    times its communication as the speed-up says, as if nothing else took time."""
    sent = equation_2(network(LARGEST), BATCH).elements * DOUBLE
    return TABLE_4[LARGEST][2] * sent / STATED


def _link_notes() -> tuple[str, ...]:
    law, _ = laws()["per slave"]
    return (
        f"At the stated 5 Mbit/s one batch would take PC1 alone {least_alone() / HOUR:.0f} h at "
        "least (3.28 times the communication alone) and "
        f"{law.alone(LARGEST, STATED) / HOUR:.0f} h by the fit to table 4 below, with "
        f"{law.rate(STATED) / 1e6:.0f} MFLOP/s in convolutions: 5 Mbit/s cannot be. At 5 MB/s it "
        f"takes {law.alone(LARGEST, MEANT) / HOUR:.0f} h with {law.rate(MEANT) / 1e9:.1f} GFLOP/s, "
        "which is slow, but possible. Equation 2 is of the way forward; if as much travels back, "
        "all of it takes twice as long.",
    )


def table_4() -> Table:
    """Return table 4 beside three laws that are fitted to it."""
    found = laws()
    head = ["network", "CPUs", "paper"]
    for way in WAYS:
        head += [way, "off"]
    rows = []
    for name in NETWORKS:
        for count, reported in enumerate(TABLE_4[name], start=1):
            row = [short(name), str(count + 1), f"{reported:.2f}"]
            for way in WAYS:
                law, _ = found[way]
                ours = law.speedup(name, law.speeds[:count])
                row += [f"{ours:.2f}", percent(ours / reported - 1)]
            rows.append(tuple(row))
    return Table(
        "Table 4: best speed-ups with CPUs, beside fits of six parameters to its twelve figures",
        tuple(head),
        tuple(rows),
        _table_4_notes(found),
    )


def _table_4_notes(found: Mapping[Way, tuple[Law, float]]) -> tuple[str, ...]:
    lines = ["Left by the fit, rms, and the speeds of PC1 to PC4 that it gives:"]
    for way, (law, left) in found.items():
        lines.append(f"  {way:<10}  {100 * left:4.1f} %  {_speeds(law.speeds)}")
    lines.append("With free links single networks would say, by the stated shares of other layers:")
    for name in OTHER:
        speeds = _speeds(speeds_if_free(name, OTHER[name]))
        lines.append(f"  {short(name):<10}  {speeds}")
    return (
        *lines,
        "So communication was not free. What closes the table is communication, the inputs sent "
        "once per slave. The speeds that this gives depend on the model, and are no measurement.",
    )


def _speeds(slaves: Sequence[float]) -> str:
    return " : ".join(["1", *(f"{speed:.2f}" for speed in slaves)])


def table_5() -> Table:
    """Return table 5 beside the step that the shares stated for the largest network give."""
    law = GPU.law("per slave")
    rows = []
    for name in NETWORKS:
        for count, reported in enumerate(TABLE_5[name], start=1):
            ours = law.speedup(name, law.speeds[:count])
            free = Law("free", law.speeds, 0, law.other).speedup(name, law.speeds[:count])
            closed = "agrees" if abs(ours / reported - 1) <= AGREES else UNEXPLAINED
            rows.append(
                (
                    short(name), str(count + 1), f"{reported:.2f}", f"{ours:.2f}",
                    percent(ours / reported - 1), f"{free:.2f}", percent(free / reported - 1),
                    closed,
                )
            )  # fmt: skip
    small, large = (equation_2(network(name), BATCH) for name in (SMALLEST, LARGEST))
    falls = small.elements / small.flop / (large.elements / large.flop)
    return Table(
        "Table 5: best speed-ups with GPUs, beside the shares that the text states for them",
        ("network", "GPUs", "paper", "per slave", "off", "free", "off", CLOSED),
        tuple(rows),
        (
            f"Communication takes {share(GPU.two)} of 500:1500's step on 2 GPUs and "
            f"{share(GPU.three)} on 3, other layers as much on 3. So one GPU spends "
            f"{share(GPU.other)} on other layers, and the speeds are {_speeds(GPU.speeds)}.",
            "The speed-ups fall as networks grow. But what is sent per FLOP falls too, "
            f"{falls:.1f} times from the smallest to the largest, so communication cannot be why; "
            "and the kernels, which the paper blames, are "
            f"{share(large.kernels / large.elements)} of what is sent. With one share of other "
            f"layers for all networks no law leaves less than {100 * flat_rms():.0f} % rms: then "
            "all have one speed-up. Free links would need a share that grows from "
            f"{share(other_if_free(SMALLEST))} to {share(other_if_free(LARGEST))}, while on CPUs "
            f"it falls from {share(OTHER[SMALLEST])} to {share(OTHER[LARGEST])}.",
        ),
        words=True,
    )


def other_if_free(name: str) -> float:
    """Return the share of other layers that a network's speed-up with 3 GPUs says if links were
    free."""
    part = 1 / (1 + sum(GPU.speeds))
    return (1 / TABLE_5[name][1] - part) / (1 - part)


def flat_rms() -> float:
    """Return the rms of table 5 beside one speed-up for all networks: the best that a law with one
    share of other layers can do, for its communication only makes small networks worse."""
    logs = np.log([TABLE_5[name] for name in NETWORKS])
    return rms((logs - logs.mean(axis=0)).ravel())


def batch_rows() -> list[tuple[Compared, bool]]:
    """Return what the text says of speed-ups over the batch beside ours; whether by CPUs."""
    cpu, gpu = laws()["per slave"][0], GPU.law("per slave")

    def row(of: str, name: str, batch: int, reported: float) -> Compared:
        law = cpu if of == "CPUs" else gpu
        ours = law.speedup(name, law.speeds, batch)
        return Compared(f"{len(law.speeds) + 1} {of}, {short(name)}, batch {batch}", reported, ours)

    said = (
        ("CPUs", SMALLEST, 64, 1.45), ("CPUs", SMALLEST, 128, 1.52), ("CPUs", SMALLEST, 1024, 1.4),
        ("CPUs", LARGEST, 64, 2.25), ("CPUs", LARGEST, 128, 2.2), ("CPUs", LARGEST, 1024, 3.28),
        ("GPUs", SMALLEST, 64, 2.45), ("GPUs", SMALLEST, 128, 2.15), ("GPUs", LARGEST, 64, 2.0),
        ("GPUs", LARGEST, 128, 1.95),
    )  # fmt: skip
    return [(row(*each), each[0] == "CPUs") for each in said]


def fixed_cost() -> tuple[float, float]:
    """Return the seconds that would have to be lost per batch of 64 to bring the law's speed-up of
    the largest network on 4 CPUs down to 2.25, at 5 MB/s, and what they would make of 3.28."""
    law, _ = laws()["per slave"]
    alone = law.alone(LARGEST, MEANT) * 64 / BATCH
    lost = (1 / 2.25 - 1 / law.speedup(LARGEST, law.speeds, 64)) * alone
    whole = law.alone(LARGEST, MEANT)
    return lost, whole / (whole / law.speedup(LARGEST, law.speeds) + lost)
