"""Write lines that stay whole where several ranks write into one stream."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Final

STDERR: Final = 2


def escape_what_cannot_be_shown() -> None:
    """Have both streams write escapes for what their encoding, as that of ASCII terminals, lacks.

    Python would end in an error: after the work is done, where it is the result that is printed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(rank: int | None, text: str, fd: int = STDERR) -> None:
    """Write `text` in one piece, each line marked with `rank`, so that ranks' lines stay whole.

    What the stream's encoding lacks is escaped.
    """
    mark = "" if rank is None else f"[rank {rank}] "
    stream = sys.__stderr__ if fd == STDERR else sys.__stdout__
    data = "".join(f"{mark}{line}\n" for line in text.splitlines()).encode(
        stream.encoding if stream else "utf-8", "backslashreplace"
    )
    try:
        write_all(fd, data)
    except OSError:
        if fd != STDERR:  # where errors cannot be told, there is nobody to tell
            raise


def write_all(fd: int, data: bytes, at: int | None = None) -> None:
    """Write all of `data` to a descriptor: where it stands, or `at` a byte of the file."""
    while data:
        count = os.write(fd, data) if at is None else os.pwrite(fd, data, at)
        data, at = data[count:], None if at is None else at + count
