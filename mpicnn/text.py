"""Numbers, times and tables as text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def duration(seconds: float) -> str:
    """Return a time as "0:07", "12:34" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def figure(number: float) -> str:
    """Return a speed with about three digits: "3124", "84.2", "0.0312"."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def counted(number: int, noun: str) -> str:
    """Return "1 rank" or "2 ranks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(values: Iterable[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    *most, last = values
    return f"{', '.join(most)} and {last}" if most else last


def one_of(values: Sequence[str]) -> str:
    """Return "a, b or c"."""
    return f"{', '.join(values[:-1])} or {values[-1]}"


def spans(names: Collection[str], order: Sequence[str], most: int = 6) -> str:
    """Return names that are some of `order`, in that order, those in a row as "a … d (4)".

    Of more than `most` such parts the first are told, and how many names are left.
    """
    rows: list[list[str]] = [[]]
    for name in order:
        if name in names:
            rows[-1].append(name)
        elif rows[-1]:
            rows.append([])
    parts: list[tuple[str, int]] = []
    for row in filter(None, rows):
        long = len(row) > 3
        parts += [(f"{row[0]} … {row[-1]} ({len(row)})", len(row))] if long else []
        parts += [] if long else [(name, 1) for name in row]
    text = ", ".join(part for part, _ in parts[:most])
    left = sum(count for _, count in parts[most:])
    return f"{text} and {left} more" if left else text


def align(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Align a table: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])]
        for row in rows
    ]
    return ["  ".join(cells).rstrip() for cells in aligned]
