"""Messages between the ranks of a communicator, threads or processes of one machine, by files."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np

ID_BYTES = 128
MOST_IN_A_GROUP = 64  # calls of all ranks that are begun before the first is waited for
TIME_LIMIT = 60.0  # seconds until a rank that nobody joins gives up


def new_id() -> bytes:
    """Return the name of a folder that is not there yet, filled up with zeros."""
    shared = Path("/dev/shm")
    parent = shared if shared.is_dir() else Path(tempfile.gettempdir())
    folder = parent / f"mpicnn-standin-{os.getuid()}-{secrets.token_hex(8)}"
    return os.fsencode(folder).ljust(ID_BYTES, b"\0")


class Exchange:
    """One rank's view of the folder: what it says, in numbered calls, and what others say."""

    def __init__(self, name: bytes, size: int, rank: int) -> None:
        self.folder = Path(os.fsdecode(name.rstrip(b"\0")))
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.size, self.rank = size, rank
        self._calls = itertools.count()
        self._sent = [itertools.count() for _ in range(size)]
        self._received = [itertools.count() for _ in range(size)]
        self.leave = weakref.finalize(self, _leave, self.folder, size, rank)

    def meet(self, text: str) -> list[str]:
        """Return every rank's text; wait until all are there."""
        call = self.say(text, np.empty(0, np.uint8))
        limit = time.monotonic() + TIME_LIMIT
        while (found := self.hear(call)) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"not all of {self.size} ranks came")
            time.sleep(1e-3)
        return [head for head, _ in found]

    def say(self, head: str, data: np.ndarray) -> int:
        """Publish this rank's part of the next call of all ranks; return the call's number."""
        call = next(self._calls)
        self._write(f"{call}.{self.rank}", head, data)
        return call

    def hear(self, call: int) -> list[tuple[str, bytes]] | None:
        """Return what every rank said in a call, or None as long as one is missing."""
        paths = [self.folder / f"{call}.{rank}" for rank in range(self.size)]
        if not all(path.exists() for path in paths):
            return None
        found = [_read(path) for path in paths]
        # all have come this far, so all have read what came before this group of calls
        (self.folder / f"{call - MOST_IN_A_GROUP}.{self.rank}").unlink(missing_ok=True)
        return found

    def send(self, to: int, head: str, data: np.ndarray) -> None:
        """Leave a message for one rank."""
        self._write(f"{self.rank}-{to}-{next(self._sent[to])}", head, data)

    def expect(self, source: int) -> Path:
        """Return where the next message from one rank will be."""
        return self.folder / f"{source}-{self.rank}-{next(self._received[source])}"

    def receive(self, path: Path) -> tuple[str, bytes] | None:
        """Return a message and delete it, or None as long as it is not there."""
        if not path.exists():
            return None
        message = _read(path)
        path.unlink()
        return message

    def _write(self, name: str, head: str, data: np.ndarray) -> None:
        aside = self.folder / f"aside-{self.rank}-{secrets.token_hex(4)}"
        aside.write_bytes(head.encode() + b"\n" + data.tobytes())
        aside.rename(self.folder / name)


def _read(path: Path) -> tuple[str, bytes]:
    head, _, data = path.read_bytes().partition(b"\n")
    return head.decode(), data


def _leave(folder: Path, size: int, rank: int) -> None:
    """Say that this rank needs the folder no more; the last one removes it."""
    try:
        (folder / f"left.{rank}").touch()
        if all((folder / f"left.{other}").exists() for other in range(size)):
            shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:
        pass  # another rank was the last
