"""The Python file of a network with layer classes of a user's own.

A checkpoint describes its network but holds no code. So a run keeps a copy of the file, and its
checkpoints the copy's digest: nothing else is ever run for a checkpoint, and not before it is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from mpicnn import models
from mpicnn.errors import UserError, printable
from mpicnn.job.output import say
from mpicnn.models.entry import known
from mpicnn.run.directory import CHECKPOINTS, write_bytes
from mpicnn.run.resuming import Meta, first_difference
from mpicnn.settings.definitions import Settings

NETWORK = "network.py"
"""The copy's name. Where a run went on with an edited file, the next one is `network-2.py`."""


def keep(directory: Path, source: bytes) -> str:
    """Keep the file's bytes in a run's directory, and return their digest.

    Copies are never changed: checkpoints tell of them. Raises UserError where none can be written.
    """
    for number in count(1):
        path = directory / (NETWORK if number == 1 else f"{Path(NETWORK).stem}-{number}.py")
        if not path.exists():
            write_bytes(path, source)
        if _bytes(path) == source:
            break
    return _digest(source)


def file_to_run(settings: Settings, meta: Meta | None, directory: Path) -> str:
    """Return the Python file that a training runs for its network, "" for none.

    `meta` are of the run in `directory` to go on with. What the user did not name is said.
    """
    if settings.model or meta is None:
        return settings.model if settings.model.endswith(".py") else ""
    if known(meta["model"]):
        return ""
    path = _find(directory, meta.get("code", ""))
    path = path or Path(Settings.from_json(meta["settings"]).model)
    return said(path) if path.is_file() else str(path)


def source_of(file: str) -> bytes:
    """Return the bytes of a file, none where it cannot be read: who runs it says why."""
    return (_bytes(Path(file)) or b"") if file else b""


def file_of(meta: Mapping[str, Any], checkpoint: Path) -> str:
    """Return the copy that a checkpoint's network needs, "" where the package has all its layers.

    It is in the run's directory, or beside a checkpoint that lies elsewhere, and is said.
    Raises UserError where it is not there.
    """
    if known(meta["model"]):
        return ""
    directory = checkpoint.absolute().parent
    directory = directory.parent if directory.name == CHECKPOINTS else directory
    own = next(str(each.get("type")) for each in meta["model"] if not known([each]))
    if path := _find(directory, meta.get("code", "")):
        return said(path)
    begin = f"{checkpoint}: its network has layers of a class of its own, {own}"
    if "code" not in meta:
        raise UserError(
            f"{begin}, and the checkpoint knows no file of it; go on with the run, with --model "
            "FILE.py, so that it keeps one"
        )
    raise UserError(
        f"{begin}, defined in the run's {NETWORK}, which is not in {directory} as it was "
        f"(SHA-256 {meta['code'][:12]}…); put it there"
    )


def load_kept(file: str, meta: Mapping[str, Any]) -> models.Model:
    """Return the network of a checkpoint by running the copy of its file.

    Raises UserError where it is not the file, or the network, that the checkpoint tells of.
    """
    if _digest(source_of(file)) != meta["code"]:
        raise UserError(f"{file}: changed meanwhile; expected the run's own file")
    found = models.load(file, meta["input_shape"], len(meta["classes"]))
    if (where := first_difference(meta["model"], found.describe())) is not None:
        raise UserError(f"{file}: makes another network than that of the checkpoint: {where}")
    return replace(found, name=meta["name"], layers=found.nodes)


def said(path: Path) -> str:
    """Say that a file is about to be run, and return it."""
    note = f"mpicnn: note: runs code from {path}: it defines layers of the network"
    say(None, printable(note))
    return str(path)


def _find(directory: Path, digest: str) -> Path | None:
    """Return the copy in a directory that has this digest."""
    for path in sorted(directory.glob(f"{Path(NETWORK).stem}*.py")) if digest else ():
        source = _bytes(path)
        if source is not None and _digest(source) == digest:
            return path
    return None


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes() if path.is_file() else None
    except OSError:
        return None


def _digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()
