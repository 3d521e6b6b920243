"""Checks of settings whose type alone says too little.

Each returns the value as it is to be kept, or raises ValueError("what was expected").
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf

MOST_PATH, MOST_NAME = 4095, 255
"""What Linux allows in a path and in each of its names, bytes."""


def path(value: object) -> str:
    """Return a path with ~ at its beginning as the user's home directory; shells leave it so in
    `--run-dir=~/r`.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("text: a path")
    found = os.path.expanduser(value)
    try:
        names = os.fsencode(found).split(b"/")
    except UnicodeEncodeError:
        raise ValueError("text: a path") from None
    if sum(map(len, names)) + len(names) - 1 > MOST_PATH or max(map(len, names)) > MOST_NAME:
        raise ValueError(f"a path of {MOST_PATH} bytes and names of {MOST_NAME}, at most")
    return found


def shares_text(value: object) -> str:
    """Return "equal", "measured" or one number per rank, not all 0, as text "2,1,1"."""
    text = _joined(value)
    if text in ("equal", "measured"):
        return text
    numbers = _numbers(text)
    if not (any(numbers) and all(0 <= number < inf for number in numbers)):
        raise ValueError("equal, measured or a number per rank, not all 0, like 2,1,1")
    return text.replace(" ", "")


def weights_text(value: object) -> str:
    """Return "balanced" or one number above 0 per class, as text "1,2,0.5"; "" for none."""
    text = _joined(value)
    if text in ("", "balanced"):
        return text
    numbers = _numbers(text)
    if not (numbers and all(0 < number < inf for number in numbers)):
        raise ValueError("balanced, or a number above 0 per class, like 1,2,0.5")
    return text.replace(" ", "")


def stages_text(value: object) -> str:
    """Return the number of stages, at least 1, or layer names joined by commas, as text."""
    text = _joined(value)
    names = [part.strip() for part in text.split(",")]
    if not all(names) or (names[0].isdigit() and (len(names) > 1 or int(names[0]) < 1)):
        raise ValueError("a number of stages, or layers like conv3,fc6")
    return ",".join(names)


def patterns_text(value: object) -> str:
    """Return patterns of layer names joined by commas, as text; "" for none."""
    text = _joined(value)
    patterns = [part.strip() for part in text.split(",")]
    if text and not all(re.fullmatch(r"[]A-Za-z0-9_*?[!-]+", part) for part in patterns):
        raise ValueError("names of layers, or patterns like conv*,bn1")
    return ",".join(patterns)


def devices_text(value: object) -> str:
    """Return the device of every rank of a host, joined by commas, as text."""
    text = _joined(value)
    entries = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"auto|cpu|gpu(:\d+)?", entry) for entry in entries):
        raise ValueError("auto, cpu, gpu, gpu:N, or several like gpu:0,cpu")
    return ",".join(entries)


def _joined(value: object) -> str:
    """Return the items of a list, as TOML files have it, or what joins them already, as text."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _numbers(text: str) -> list[float]:
    """Return the numbers that commas join, none where there is anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


def extents(example: str) -> Callable[[object], str]:
    """Return a check for text like `example`: whole numbers above 0 joined by x, or nothing."""

    def check(value: object) -> str:
        text = str(value)
        parts = text.split("x")
        valid = all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts)
        if text and not (valid and len(parts) == len(example.split("x"))):
            raise ValueError(f"whole numbers above 0, like {example}")
        return text

    return check


def rising(value: Sequence[float]) -> tuple[float, ...]:
    """Return `value` as a tuple if its numbers rise strictly between 0 and 1."""
    if not all(a < b for a, b in pairwise((0.0, *value, 1.0))):
        raise ValueError("rising fractions of the run above 0 and below 1, like 0.5,0.75")
    return tuple(value)


def fractions(value: Sequence[float]) -> tuple[float, ...]:
    """Return `value` as a tuple if it is two numbers in order, above 0 and up to 1."""
    if not (len(value) == 2 and 0 < value[0] <= value[1] <= 1):
        raise ValueError("least and most, above 0 and at most 1, like 0.08,1")
    return tuple(value)


def ratios(value: Sequence[float]) -> tuple[float, ...]:
    """Return `value` as a tuple if it is two numbers in order, above 0."""
    if not (len(value) == 2 and 0 < value[0] <= value[1]):
        raise ValueError("least and most, above 0, like 0.75,1.3333")
    return tuple(value)


def spreads(value: Sequence[float]) -> tuple[float, ...]:
    """Return `value` as a tuple if its numbers are above 0."""
    if not all(number > 0 for number in value):
        raise ValueError("numbers above 0")
    return tuple(value)


def names_text(value: object) -> str:
    """Return class names joined by commas, none of them empty or twice, as text."""
    text = _joined(value)
    names = text.split(",")
    if text and not (all(names) and len(set(names)) == len(names)):
        raise ValueError("names separated by commas, none empty or twice")
    return text


def counts_text(value: object) -> str:
    """Return two or three whole numbers above 0 joined by commas, as text."""
    text = _joined(value)
    parts = text.split(",")
    if text and not (len(parts) in (2, 3) and all(p.isdecimal() and int(p) > 0 for p in parts)):
        raise ValueError("two or three whole numbers above 0, like 500,100")
    return text


def splits_text(value: object) -> str:
    """Return the names of two or three folders joined by commas, or "none", as text."""
    text = _joined(value)
    names = text.split(",")
    fit = len(names) in (2, 3) and all(names) and len(set(names)) == len(names)
    if text not in ("", "none") and not fit:
        raise ValueError(
            "the names of two or three folders, like train,test or train,val,test, or none"
        )
    return text


def checkpoint_text(value: object) -> str:
    """Return auto, best, last, or the number of a step, as text."""
    text = str(value)
    if text not in ("auto", "best", "last") and not (text.isascii() and text.isdecimal()):
        raise ValueError("auto, best, last or the number of a step, like 400")
    return text


def amount_text(value: object) -> str:
    """Return a whole number above 0, or a fraction above 0 and below 1, as text."""
    text = str(value)
    whole = text.isascii() and text.isdecimal() and len(text) < 19 and int(text) > 0
    if text and not (whole or re.fullmatch(r"0?\.\d*[1-9]\d*", text, re.ASCII)):
        raise ValueError("a number of images like 5000, or a fraction of each class like 0.1")
    return text


SIZES = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def size_text(value: object) -> str:
    """Return an amount of memory as text like "4GB", or nothing."""
    text = str(value).replace(" ", "")
    if text and not bytes_of(text):
        raise ValueError("a number above 0 with its unit, like 4GB or 512MB")
    return text


def bytes_of(text: str) -> float:
    """Return the bytes of a text like "4GB"; 0 where it says none."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(KB|MB|GB|TB)", text.upper(), re.ASCII)
    return float(found[1]) * SIZES[found[2]] if found else 0.0


def grid_text(value: object) -> str:
    """Return text like 2x4, one of whose lengths may be left out, or nothing."""
    text = str(value)
    if text and not re.fullmatch(r"([1-9][0-9]{0,8})?x([1-9][0-9]{0,8})?", text) or text == "x":
        raise ValueError("two lengths above 0, like 2x4; or one and x, like x4 or 2x")
    return text


def nodes_text(value: object) -> str:
    """Return numbers of nodes joined by commas, and ranges like 1..64, as text."""
    text = str(value).replace(" ", "")
    if text:
        node_counts(text)
    return text


def node_counts(text: str) -> list[int]:
    """Return the numbers of nodes that a text names, in order, each once.

    "a..b" is a, 2 a, 4 a and so on up to b, and b. Raises ValueError with what was expected.
    """
    found: set[int] = set()
    for part in text.split(","):
        if not (match := re.fullmatch(r"([1-9][0-9]{0,5})(?:\.\.([1-9][0-9]{0,5}))?", part)):
            raise ValueError("whole numbers from 1 to 999999 and ranges, like 1..64 or 1,2,3,8..64")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(f"ranges that rise, like {last}..{first}")
        while first < last:
            found.add(first)
            first *= 2
        found.add(last)
    return sorted(found)
