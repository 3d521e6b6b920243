"""One run at a time in a run directory: a file that names the holder, on any file system."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mpicnn.errors import UserError
from mpicnn.job.environment import Environ

LOCK = ".lock"
BEAT_S = 15.0
"""Seconds between two signs of life of a holder."""

SILENT_S = 120.0
"""A holder on another host that gave no sign of life for so many seconds is taken to be dead."""


@dataclass(frozen=True)
class Holder:
    """Name a process: host, number, the time it began (clock ticks), SLURM job and restart."""

    host: str
    pid: int
    began: str
    job: str
    restart: int

    @classmethod
    def me(cls, environ: Environ) -> Holder:
        """Return this process."""
        restart = environ.get("SLURM_RESTART_COUNT", "0")
        return cls(
            socket.gethostname(),
            os.getpid(),
            began(os.getpid()),
            environ.get("SLURM_JOB_ID", ""),
            int(restart) if restart.isdecimal() else 0,
        )

    def gone(self, seen_by: Holder, silent: float) -> bool:
        """Tell whether this holder, `silent` for so many seconds, is known to be dead.

        SLURM starts a job anew only when its earlier go has ended.
        """
        if self.host == seen_by.host:
            return began(self.pid) != self.began
        earlier = bool(self.job) and self.job == seen_by.job and self.restart < seen_by.restart
        return earlier or silent > SILENT_S


def began(pid: int) -> str:
    """Return when a process of this host began, in the system's own unit; "" if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self").exists() or not _lives(pid) else "unknown"
    state, *others = text.rpartition(")")[2].split()
    return "" if state in "ZX" else others[18]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class RunLock:
    """Hold a run directory while entered. Raises UserError where another process holds it.

    The lock is a file made by a hard link, which is atomic over NFS too. Its holder touches it now
    and then; the lock of a dead holder is taken over.
    """

    def __init__(self, directory: Path, environ: Environ) -> None:
        self._path = directory / LOCK
        self._me = Holder.me(environ)
        self._text = json.dumps(asdict(self._me))
        self._own = directory / f"{LOCK}-{self._me.host}-{self._me.pid}"
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._own.write_text(self._text)
            try:
                while not self._taken():
                    self._remove_dead()
            finally:
                self._own.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be made: {error.strerror}") from None
        threading.Thread(target=self._beat, name="mpicnn-lock", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._ended.set()
        with suppress(OSError):
            if self._path.read_text() == self._text:
                self._path.unlink()

    def _taken(self) -> bool:
        try:
            os.link(self._own, self._path)
        except FileExistsError:
            return False
        return True

    def _remove_dead(self) -> None:
        """Remove the lock of a dead holder. Raises UserError where it lives."""
        try:
            text = self._path.read_text()
            silent = self._own.stat().st_mtime - self._path.stat().st_mtime
        except FileNotFoundError:
            return  # just given back
        holder = self._holder(text)
        if holder is not None and not holder.gone(self._me, silent):
            job = f", job {holder.job}" if holder.job else ""
            raise UserError(
                f"run directory {self._path.parent}: in use by process {holder.pid} on "
                f"{holder.host}{job}, which gave its last sign of life {max(0, silent):.0f} s ago; "
                f"wait for its end, or give another --run-dir (a dead one is known after "
                f"{SILENT_S:.0f} s)"
            )
        aside = self._own.with_name(f"{self._own.name}-dead")
        with suppress(FileNotFoundError):
            self._path.rename(aside)
            if aside.read_text() != text:  # another was quicker to take over: give it back
                os.link(aside, self._path)
            aside.unlink()

    def _holder(self, text: str) -> Holder | None:
        """Return the holder that a lock names, None for a file that is no lock of ours."""
        try:
            holder = Holder(**json.loads(text))
        except (TypeError, ValueError):
            return None
        return holder if all(
            isinstance(value, kind)
            for value, kind in zip(asdict(holder).values(), (str, int, str, str, int), strict=True)
        ) else None  # fmt: skip

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with suppress(OSError):
                now = time.time()
                os.utime(self._path, (now, now))
