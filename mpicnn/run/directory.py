"""The directory of one run: settings, plan, metrics and checkpoints, never overwritten."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.errors import UserError
from mpicnn.settings.definitions import differences, parse

if TYPE_CHECKING:
    from mpicnn.settings.definitions import Settings

CONFIG, PLAN, METRICS, CHECKPOINTS = "config.toml", "plan.toml", "metrics.csv", "checkpoints"
RUNS = Path("runs")


def open_run(settings: Settings) -> Path:
    """Return the run's directory, made if it is new.

    Without a name, the first free `runs/MODEL-NUMBER` is taken.
    Raises UserError for a directory in use that is not to be resumed, for one that was begun with
    other settings, and where none can be made.
    """
    try:
        if not settings.run_dir:
            return _fresh(Path(settings.model).stem)
        path = Path(settings.run_dir)
        if path.exists() and (not path.is_dir() or any(path.iterdir())) and not settings.resume:
            raise UserError(
                f"run directory {path}: exists already; give --resume to go on with it, "
                "or another --run-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        _check_writable(path)
    except OSError as error:
        where = settings.run_dir or RUNS
        raise UserError(
            f"run directory {where}: cannot be made or written: {error.strerror}; "
            "give another --run-dir"
        ) from None
    config = path / CONFIG
    before = parse([str(config)], "train", {}) if config.is_file() else settings
    if changed := differences(before, settings):
        raise UserError(
            f"run directory {path}: the run cannot go on with other settings ({'; '.join(changed)})"
            "; give those it began with, or another --run-dir"
        )
    return path


def _fresh(name: str) -> Path:
    for number in count(1):
        path = RUNS / f"{name}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise AssertionError("counting does not end")


def _check_writable(path: Path) -> None:
    probe = path / ".probe"
    probe.touch()
    probe.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small file of the run whole. Raises UserError where that is not possible."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
