"""The first lines of a run, and its summary.

Called on one rank; nothing here communicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from mpicnn.devices.ranks import Rank
from mpicnn.errors import printable
from mpicnn.text import align, counted, duration, figure

if TYPE_CHECKING:
    from mpicnn.run.testing import Score

HOSTS_NAMED = 3
DIFFERING = 5


@dataclass(frozen=True)
class Opening:
    """Say what a run begins with. `library` is the MPI library's name and version."""

    version: str
    ranks: Sequence[Rank]
    library: str
    model: str
    parameters: int
    data: str
    plan: str
    run_dir: str
    notes: Sequence[str] = ()
    more: Sequence[tuple[str, str]] = ()


def startup(run: Opening) -> str:
    """Return the first lines of a run."""
    lines = [f"mpicnn {run.version}: {counted(len(run.ranks), 'rank')}, {run.library}"]
    lines += [f"  {'hosts':<6} {line}" for line in _hosts(run.ranks)]
    for name, value in (
        ("model", f"{run.model}, {run.parameters:,} parameters"),
        ("data", run.data),
        ("plan", run.plan),
        ("run", run.run_dir),
        *run.more,
    ):
        lines.append(f"  {name:<6} {printable(value)}")
    lines += [f"note: {note}" for note in run.notes]
    return "\n".join(lines)


def _hosts(ranks: Sequence[Rank]) -> list[str]:
    """Return a line for each set of hosts with equal ranks."""
    by_host: dict[str, list[str]] = {}
    for rank in ranks:
        what = f"{rank.device} ({rank.backend}, {counted(rank.threads, 'thread')})"
        by_host.setdefault(rank.host, []).append(what)
    alike: dict[str, list[str]] = {}
    for host, devices in by_host.items():
        tally = Counter(sorted(devices))
        alike.setdefault(" + ".join(f"{n} x {what}" for what, n in tally.items()), []).append(host)
    return [f"{_names(hosts)}: {devices}" for devices, hosts in alike.items()]


def _names(hosts: Sequence[str]) -> str:
    if len(hosts) <= HOSTS_NAMED:
        return ", ".join(hosts) + (", each" if len(hosts) > 1 else "")
    return f"{hosts[0]} ... {hosts[-1]} ({len(hosts)} hosts), each"


@dataclass(frozen=True)
class TimeSplit:
    """Say where the time of one step goes on one rank, s (as in Marques, figures 6 and 8)."""

    communication: float
    convolution: float
    other: float

    @property
    def total(self) -> float:
        """Return the time of the step, s."""
        return self.communication + self.convolution + self.other


HALF, MUCH = 0.5, 0.15
"""Parts of the time from which on messages, and waiting, are worth a sentence."""


@dataclass(frozen=True)
class Memory:
    """Say what one rank holds, bytes.

    `optimiser` is what it keeps beside them: momentum, moments, a running mean; `peak` is the most
    memory of its device that it took.
    """

    parameters: int
    optimiser: int
    peak: int


@dataclass(frozen=True)
class Forecast:
    """Say what a step was expected to take on every rank, s.

    `names` are its layers, and what else takes time; `expected` and `measured` have a row per rank
    with the seconds of each.
    """

    splits: Sequence[TimeSplit]
    names: Sequence[str]
    expected: Sequence[Sequence[float]]
    measured: Sequence[Sequence[float]]


@dataclass(frozen=True)
class RunSummary:
    """Say how a run ended. `splits` (if there was a step) and `memory` have an entry per rank;
    `forecast` is there if it was asked for.

    `steps` and `images` are those of this process, so without the run before a resume, as are
    `seconds`, which include tests and checkpoints. `test` is missing where none was made; `tested`
    says on which images, and of which step's network where it is not the last one. `notes` are
    lines about what was chosen; `more` is the option that lets the run go on.
    `launcher` is what stands before `python` in commands, like "mpirun -n 4". `remedies` are the
    options that may help where ranks wait, those that the run has not.
    """

    run_dir: str
    steps: int
    images: int
    seconds: float
    test: Score | None
    splits: Sequence[TimeSplit]
    memory: Sequence[Memory]
    launcher: str = ""
    tested: tuple[str, str] = ("test", "")
    notes: Sequence[str] = ()
    more: str = "--epochs MORE"
    forecast: Forecast | None = None
    remedies: Sequence[str] = ()


def summary(run: RunSummary) -> str:
    """Return the last lines of a run: score, time, where the time went, memory, what to do next."""
    speed = figure(run.images / run.seconds) if run.seconds > 0 else "-"
    lines = [
        "",
        f"{counted(run.steps, 'step')} in {duration(run.seconds)}, {speed} images/s",
    ]
    lines += run.notes
    if run.test is not None:
        split, of = run.tested
        lines.append(f"{split}: {run.test.text()}{of}")
    if run.splits:
        lines += ["", *_time_table(run.splits, run.forecast.splits if run.forecast else ())]
    if told := where_time_went(run.splits, run.remedies):
        lines.append(told)
    if run.splits and run.forecast:
        lines += ["", *_layer_table(run.forecast, _slowest(run.splits))]
    if run.memory:
        lines += ["", *_memory_table(run.memory)]
    directory, before = quote(run.run_dir), f"{run.launcher} python -m mpicnn.".lstrip()
    commands = {
        "evaluate": f"evaluate {directory}",
        "predict": f"predict {directory} IMAGE ...",
        "resume": f"train --resume --run-dir {directory} {run.more}",
    }
    lines += ["", f"{run.run_dir} holds the checkpoints, metrics and settings"]
    lines += [f"  {name:<9} {before}{command}" for name, command in commands.items()]
    return "\n".join(lines)


def _time_table(splits: Sequence[TimeSplit], forecast: Sequence[TimeSplit]) -> list[str]:
    """Return the slowest rank's step by kind of work, beside the other ranks' and its forecast.

    The slowest rank is the one that computes longest: the others wait for it, and waiting counts
    as communication.
    """
    slowest = _slowest(splits)
    head = ["one step, ms", f"rank {slowest}", "%", "least", "most"]
    rows = [head]
    for kind in ("communication", "convolution", "other", "total"):
        times = [getattr(split, kind) for split in splits]
        share = times[slowest] / splits[slowest].total if splits[slowest].total else 0.0
        row = [kind, _ms(times[slowest]), f"{100 * share:.1f}", _ms(min(times)), _ms(max(times))]
        rows.append(row)
    if len(splits) == 1:
        rows = [row[:3] for row in rows]
    if forecast:
        expected = forecast[slowest]
        rows = [
            [*row, _ms(getattr(expected, row[0])) if at else "forecast"]
            for at, row in enumerate(rows)
        ]
    return align(rows)


def where_time_went(splits: Sequence[TimeSplit], remedies: Sequence[str]) -> str:
    """Return in a sentence what is lost to waiting or to messages where that is much; else "".

    The slowest rank waits for nobody, so what it communicates is messages; what the others do
    beyond that is waiting for it.
    """
    if len(splits) < 2 or not sum(split.total for split in splits):
        return ""
    slowest = _slowest(splits)
    sent = splits[slowest].communication / splits[slowest].total
    lost = sum(split.communication for split in splits) / sum(split.total for split in splits)
    if sent > HALF:
        told = f"{100 * sent:.0f} % of a step is communication, even on rank {slowest}"
    elif lost - sent > MUCH:
        told = f"{100 * (lost - sent):.0f} % of the ranks' time is waiting for rank {slowest}"
    else:
        return ""
    return f"{told}: try {' or '.join(remedies)}" if remedies else told


def _slowest(splits: Sequence[TimeSplit]) -> int:
    """Return the rank that computes longest."""
    return max(range(len(splits)), key=lambda r: splits[r].convolution + splits[r].other)


def _layer_table(forecast: Forecast, rank: int) -> list[str]:
    """Return what differs most from its forecast on a rank."""
    rows = list(zip(forecast.names, forecast.measured[rank], forecast.expected[rank], strict=True))
    rows.sort(key=lambda row: -abs(row[1] - row[2]))
    head = ["what differs most, ms", f"rank {rank}", "forecast"]
    return align([head, *([name, _ms(a), _ms(b)] for name, a, b in rows[:DIFFERING])])


def _memory_table(memory: Sequence[Memory]) -> list[str]:
    alone = len(memory) == 1
    rows = [["memory, MB", ""] if alone else ["memory per rank, MB", "least", "most"]]
    for kind, name in (
        ("parameters", "parameters"), ("optimiser", "optimiser"), ("peak", "peak"),
    ):  # fmt: skip
        held = [getattr(each, kind) / 1e6 for each in memory]
        extremes = held if alone else [min(held), max(held)]
        rows.append([name, *(f"{each:.1f}" for each in extremes)])
    return align(rows)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
