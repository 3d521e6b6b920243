"""What the scripts share: options, what figures depend on, and the rows that they save."""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from mpi4py import MPI

from mpicnn import __version__
from mpicnn.errors import UserError


class Parser(argparse.ArgumentParser):
    """Read a script's options, of which the first ones are the same in all; UserError if wrong."""

    def __init__(self, description: str | None, models: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        self.add_argument("--models", default=models, help="networks by name, joined by commas")
        self.add_argument("--batch", type=at_least_1, default=64, help="examples per step")
        self.add_argument("--threads", type=at_least_1, default=2, help="per rank")
        self.add_argument("--backend", default="auto", help="mpicnn's backend")
        self.add_argument("--repeats", type=at_least_1, default=7, help="turns of every side")
        self.add_argument("--no-peer", dest="peer", action="store_false", help="mpicnn alone")
        self.add_argument("--out", type=Path, help="CSV file for the rows, one per side")

    def error(self, message: str) -> NoReturn:
        """Raise UserError in place of leaving the program."""
        raise UserError(f"{message} (see --help)")


def at_least_1(text: str) -> int:
    """Return a whole number of at least 1. Raises ValueError for anything else."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def some_of(known: Sequence[str]) -> Any:
    """Return a type of option: some of `known`, joined by commas, as a tuple."""

    def chosen(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(known)}")
        return found

    return chosen


def machine() -> dict[str, str]:
    """Return what the figures depend on besides the options: processor and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mpicnn": __version__,
        "torch": metadata.version("torch") if find_spec("torch") else "",
        "mpi": " ".join(MPI.Get_library_version().split("\n")[0].strip("\0").split()),
    }


def versions(about: Mapping[str, str]) -> str:
    """Return what `machine` found about software, as one line."""
    return ", ".join(f"{k} {v}" for k, v in about.items() if k != "cpu" and v)


def save(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows as CSV, if there are any. Raises UserError where that is not possible."""
    if not rows:
        return
    try:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise UserError(f"out {path}: cannot be written: {error.strerror}") from None
