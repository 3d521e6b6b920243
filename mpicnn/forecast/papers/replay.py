"""What a replay of a paper consists of: tables, curves, and figures beside the paper's."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpicnn.text import align, figure

WIDTH = 100

AGREES = 0.03
"""A figure that is off by no more than this part agrees: papers print two or three digits."""

UNEXPLAINED = "unexplained"

CLOSED = "closed by"


@dataclass(frozen=True)
class Compared:
    """Hold a figure of a paper beside ours, and what closes the difference, or `UNEXPLAINED`.

    `closed` is empty where nothing is left to close.
    """

    what: str
    paper: float
    ours: float
    closed: str = ""

    @property
    def off(self) -> float:
        """Return how far ours is from the paper's, as a part of that."""
        return self.ours / self.paper - 1

    @property
    def verdict(self) -> str:
        """Return what closes the difference; "agrees" where there is none to speak of."""
        return "agrees" if abs(self.off) <= AGREES else self.closed or UNEXPLAINED


@dataclass(frozen=True)
class Table:
    """Hold a table as text; `notes` are paragraphs below it.

    The first `left` columns are words, and the last one if it has `words`.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1
    words: bool = False

    def lines(self) -> list[str]:
        """Return the title, the table, aligned, and its notes."""
        cells = [self.head, *self.rows]
        if self.words:  # as wide as the widest, so that all begin alike
            widest = max(len(row[-1]) for row in cells)
            cells = [(*row[:-1], row[-1].ljust(widest)) for row in cells]
        head, *rows = align(cells, self.left)
        rule = "-" * max(map(len, (head, *rows)))
        notes = [line for note in self.notes for line in wrap(note)]
        return [self.title, "", head, rule, *rows, *([""] if notes else []), *notes]


@dataclass(frozen=True)
class Curve:
    """Hold points to draw: a line, or crosses where they are `reported`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    reported: bool = False


@dataclass(frozen=True)
class Panel:
    """Hold curves that share axes; `log` draws both axes so."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log: bool = False


@dataclass(frozen=True)
class Replay:
    """Hold what is replayed of a paper."""

    title: str
    tables: tuple[Table, ...]
    panels: tuple[Panel, ...]

    def text(self) -> str:
        """Return all tables, one below the other."""
        blocks = ["\n".join(table.lines()) for table in self.tables]
        return "\n\n\n".join([self.title, *blocks])


def compared(title: str, rows: Iterable[Compared], notes: Sequence[str] = ()) -> Table:
    """Return figures beside the paper's as a table."""
    cells = tuple(
        (each.what, figure(each.paper), figure(each.ours), percent(each.off), each.verdict)
        for each in rows
    )
    return Table(title, ("", "paper", "ours", "off", CLOSED), cells, tuple(notes), words=True)


def wrap(paragraph: str) -> list[str]:
    """Return a paragraph as lines; one that is indented stays a line."""
    return [paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, WIDTH)


def percent(part: float) -> str:
    """Return how far a figure is off: "+3.1 %"."""
    return f"{100 * part:+.1f} %"


def share(part: float) -> str:
    """Return a part of a whole: "31 %", "4.2 %"."""
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.1f} %"
