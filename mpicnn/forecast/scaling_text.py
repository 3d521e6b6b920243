"""Forecasts for more and more nodes as text: a table, CSV, and what holds the speed-up up."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpicnn.division.idle import BATCH
from mpicnn.errors import UserError
from mpicnn.forecast.scaling import Loss, Point
from mpicnn.text import align, counted, figure, listed

GROWTH = 0.1
"""A speed-up has stopped growing where all larger numbers of nodes add no more than this part."""
WORTH_TELLING = 0.05
"""What takes a smaller part of a step is not named."""
MOST_NAMED = 3

WAITING = "waiting for other ranks"

MEASURED = ("nodes", "step_s")
"""The columns that a file of measured steps has at least."""


@dataclass(frozen=True)
class Row:
    """Hold a forecast, how it compares with the reference, and a measured step, s, if there is one.

    `speedup` is that of the images per second, `efficiency` the speed-up as a part of what the
    nodes' speeds allow.
    """

    point: Point
    speedup: float
    efficiency: float
    measured: float | None = None


def rows_of(
    points: Sequence[Point], reference: Point, measured: Mapping[int, float] | None = None
) -> list[Row]:
    """Return a row for each point."""
    return [
        Row(
            point,
            point.speed / reference.speed,
            point.speed / reference.speed / (point.power / reference.power),
            (measured or {}).get(point.nodes),
        )
        for point in points
    ]


def values(row: Row) -> dict[str, Any]:
    """Return the numbers of a row by the names that they have in CSV."""
    point = row.point
    found = {
        "nodes": point.nodes,
        "ranks": point.ranks,
        "batch": point.batch,
        "step_s": point.seconds,
        "convolution_s": point.convolution,
        "communication_s": point.communication,
        "other_s": point.other,
        "speedup": row.speedup,
        "efficiency": row.efficiency,
        "images_per_s": point.speed,
    }
    if point.watts:
        found["joules"] = point.joules
    if row.measured is not None:
        found["measured_step_s"] = row.measured
    return found


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV; a number reads back as it was."""
    table = [values(row) for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def as_table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines, aligned; columns that say nothing are left out."""
    columns = {
        "nodes": lambda row: str(row.point.nodes),
        "ranks": lambda row: str(row.point.ranks),
        "batch": lambda row: str(row.point.batch),
        "step, s": lambda row: seconds(row.point.seconds),
        "convolution": lambda row: seconds(row.point.convolution),
        "communication": lambda row: seconds(row.point.communication),
        "other": lambda row: seconds(row.point.other),
        "speed-up": lambda row: f"{row.speedup:.2f}",
        "efficiency": lambda row: f"{100 * row.efficiency:.0f} %",
        "images/s": lambda row: figure(row.point.speed),
        "J/step": lambda row: figure(row.point.joules),
        "measured, s": lambda row: "" if row.measured is None else seconds(row.measured),
        "off": _off,
    }
    if all(row.point.ranks == row.point.nodes for row in rows):
        del columns["ranks"]
    if len({row.point.batch for row in rows}) == 1:
        del columns["batch"]
    if not rows[0].point.watts:
        del columns["J/step"]
    if all(row.measured is None for row in rows):
        del columns["measured, s"], columns["off"]
    cells = [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    head, *lines = align(cells, 0)
    return [head, "-" * max(map(len, (head, *lines))), *lines]


def seconds(time: float) -> str:
    """Return a time in s with four digits."""
    return f"{time:.4g}" if time < 1000 else f"{time:.0f}"


def _off(row: Row) -> str:
    """Return how far the forecast is from what was measured."""
    if row.measured is None:
        return ""
    return f"{100 * (row.point.seconds / row.measured - 1):+.0f} %"


def stop(rows: Sequence[Row]) -> int:
    """Return which row is the first whose speed-up no later one exceeds by more than `GROWTH`."""
    return next(
        at
        for at, row in enumerate(rows)
        if all(later.speedup <= (1 + GROWTH) * row.speedup for later in rows[at:])
    )


def reason(rows: Sequence[Row], at: int, where: Row, loss: Loss) -> str:
    """Return where the speed-up stops growing, row `at`, and what is lost at the row `where`."""
    point = where.point
    costs = {
        "the link between nodes": loss.between,
        "the links inside nodes": loss.inside,
        _uneven(loss): sum(loss.uneven.values()),
    }
    what, cost = max(costs.items(), key=lambda pair: pair[1])
    head = f"speed-up still grows at {counted(point.nodes, 'node')}"
    if len(rows) == 1:
        head = counted(point.nodes, "node")
    elif at < len(rows) - 1:
        head = f"speed-up stops growing at {counted(rows[at].point.nodes, 'node')}"
    there = "" if head.endswith(counted(point.nodes, "node")) else f" at {point.nodes}"
    if cost < WORTH_TELLING * point.seconds:
        return f"{head}: hardly anything is lost there"
    text = f"{head}:{there} {what} takes {seconds(cost)} of {seconds(point.seconds)} s"
    links = loss.between + loss.inside
    if links >= WORTH_TELLING * point.seconds:
        free = where.speedup * point.seconds / (point.seconds - links)
        text += f"; with free links the speed-up there would be {free:.2f}"
    return text


def _uneven(loss: Loss) -> str:
    """Return in words what is not divided evenly."""
    whole = sum(loss.uneven.values())
    order = sorted(loss.uneven, key=lambda name: -loss.uneven[name])
    most = [name for name in order if loss.uneven[name] > 0.15 * whole][:MOST_NAMED]
    named = f", most in {listed(name or WAITING for name in most)}," if most else ""
    return f"computation that is not divided evenly{named}"


def notes(points: Sequence[Point]) -> list[str]:
    """Return a line for each layer that is too small for the ranks, and for nodes with too little
    memory."""
    found: dict[str, str] = {}
    for point in points:
        for name, ranks in point.idle.items():
            what = "images" if name == BATCH else "channels"
            found.setdefault(
                name,
                f"note: {point.nodes} nodes: {counted(ranks, 'rank')} without a part of {name}, "
                f"which has too few {what}",
            )
    return [*found.values(), *_lacking(points)]


def _lacking(points: Sequence[Point]) -> list[str]:
    """Return a line for each of the first classes of nodes with too little memory, and their
    number where there are more."""
    lacking: dict[str, list[Point]] = {}
    for point in points:
        for name in point.memory:
            lacking.setdefault(name, []).append(point)
    lines = []
    for name, some in list(lacking.items())[:MOST_NAMED]:
        most = max(some, key=lambda point: point.memory[name][0])
        needed, has = most.memory[name]
        others = f", and too much on {_numbers(some)}" if len(some) > 1 else ""
        lines.append(
            f"note: {counted(most.nodes, 'node')}: {needed / 1e9:.3g} GB of arrays on each {name}, "
            f"which has {has / 1e9:.3g} GB{others}"
        )
    if more := len(lacking) - len(lines):
        what = "class of nodes has" if more == 1 else "classes of nodes have"
        lines.append(f"note: {more} more {what} too little memory")
    return lines


def _numbers(points: Sequence[Point]) -> str:
    """Return the numbers of nodes of some points."""
    return f"{listed(str(point.nodes) for point in points)} nodes"


def read_measured(path: str) -> dict[int, float]:
    """Return the seconds of a step by number of nodes that a CSV file has measured.

    Other columns than `MEASURED` are passed over. Raises UserError for anything else.
    """
    where = f"measured {path}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: cannot be read: not text in UTF-8") from None
    found = {}
    try:
        for line in csv.DictReader(text.splitlines(), strict=True):
            nodes, took = int(line["nodes"]), float(line["step_s"])
            if not (nodes > 0 and 0 < took < 1e9):
                raise ValueError
            found[nodes] = took
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(
            f"{where}: expected CSV with the columns {listed(MEASURED)}, numbers above 0"
        ) from None
    if not found:
        raise UserError(f"{where}: no rows; expected one for each number of nodes")
    return found
