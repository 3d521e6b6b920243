"""The directory of one run: settings, plan, metrics and checkpoints, never overwritten."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from mpicnn.checkpoint import Checkpoints, read_meta
from mpicnn.errors import UserError
from mpicnn.run.meta import check_meta
from mpicnn.settings.definitions import Settings, parse

CONFIG, PLAN, METRICS, LOG = "config.toml", "plan.toml", "metrics.csv", "log.txt"
CHECKPOINTS = "checkpoints"
RUNS = Path("runs")


def open_run(settings: Settings) -> Path:
    """Return the run's directory, made if it is new.

    Without a name, the first free `runs/MODEL-NUMBER` is taken.
    Raises UserError for a directory in use that is not to be resumed, and where none can be made.
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
    return path


def saved_file(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint of a run whose meta data is sound, with it, None without one."""
    for path in Checkpoints(directory / CHECKPOINTS, 1).paths():
        with suppress(UserError):  # damaged: named, and passed over, when its tensors are loaded
            meta = read_meta(path)
            check_meta(meta, path)
            return path, meta
    return None


def saved_meta(directory: Path) -> dict[str, Any] | None:
    """Return the meta data of the newest checkpoint of a run, None where none can be read."""
    found = saved_file(directory)
    return found[1] if found else None


def saved_settings(directory: Path) -> Settings | None:
    """Return the settings in the newest checkpoint of a run, None where none can be read."""
    meta = saved_meta(directory)
    return Settings.from_json(meta["settings"]) if meta else None


def config_settings(directory: Path) -> Settings | None:
    """Return the settings in a run's file of settings, None where there is none."""
    path = directory / CONFIG
    return parse([str(path)], "train", {}) if os.path.isfile(path) else None


def settings_file(directory: Path) -> Path | None:
    """Return the file of a run's settings, None where the run has none.

    One that is lost is written anew from the newest checkpoint, which holds the settings too.
    """
    path = directory / CONFIG
    if not os.path.isfile(path) and (saved := saved_settings(directory)):
        write_text(path, saved.to_toml())
    return path if os.path.isfile(path) else None


def arguments_of(directory: Path) -> list[str]:
    """Return the arguments with which a run goes on, before those that the user gives.

    They are its file of settings, and no network where the file names that of the checkpoint,
    which holds it: a file of the network may have moved or changed.
    """
    file = settings_file(directory)
    if file is None:
        return []
    saved, config = saved_settings(directory), config_settings(directory)
    own = saved is not None and config is not None and saved.model == config.model
    return [str(file), *(["--model", ""] if own else [])]


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
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file of the run whole, as `write_text` does."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
