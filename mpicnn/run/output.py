"""What a run says: to standard output and to its log.txt, going on where either cannot be written.

Used on one rank; nothing here communicates.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TextIO


def write_lines(text: str, stream: TextIO) -> None:
    """Write lines in one piece and at once, with escapes for what the stream cannot encode."""
    encoding = stream.encoding or "utf-8"
    stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def append_lines(path: Path, text: str) -> None:
    """Add lines to a file that another rank may be writing too; give up where that fails."""
    with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        write_lines(text, stream)


class Output:
    """Show lines on a stream and keep them in the file `log`; a context manager.

    It can be used in place of the stream too. A stream that cannot be written any more (its reader
    has left, its terminal is closed, its disk is full) is given up, and so is the file: the run
    goes on, and the other of the two says so.
    """

    def __init__(self, log: Path, stream: TextIO | None = None) -> None:
        self._stream: TextIO | None = stream or sys.stdout
        self._shown = self._stream
        self._path = log
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._lose_log(error)
        self.log(f"{datetime.now():%Y-%m-%d %H:%M:%S}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def show(self, text: str) -> None:
        """Write lines to the stream and to the log."""
        self.log(text)
        write_lines(text, self)  # type: ignore[arg-type]  # as much of a stream as is needed

    def log(self, text: str) -> None:
        """Write lines to the log alone."""
        if self._file is not None:
            try:
                write_lines(text, self._file)
            except OSError as error:
                with suppress(OSError):
                    self._file.close()
                self._file = None
                self._lose_log(error)

    def write(self, text: str) -> None:
        """Write to the stream alone, as does `tqdm`."""
        self._try("write", text)

    def flush(self) -> None:
        """Have the stream pass on what it has."""
        self._try("flush")

    def __getattr__(self, name: str) -> Any:
        """Return what else the stream has: encoding, isatty, fileno."""
        return getattr(self.__dict__["_shown"], name)

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            with suppress(OSError):  # what it still holds would fail again when the process ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
            self._stream = None
            self.log(f"note: standard output cannot be written: {error.strerror}; it goes on here")

    def _lose_log(self, error: OSError) -> None:
        text = f"note: {self._path} cannot be written: {error.strerror}; the run goes on without"
        write_lines(text, self)  # type: ignore[arg-type]
