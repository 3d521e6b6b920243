"""Write lines that stay whole where several ranks write into one stream."""

from __future__ import annotations

import os
from typing import Final

STDERR: Final = 2


def say(rank: int | None, text: str, fd: int = STDERR) -> None:
    """Write `text` in one piece, each line marked with `rank`, so that ranks' lines stay whole."""
    mark = "" if rank is None else f"[rank {rank}] "
    data = "".join(f"{mark}{line}\n" for line in text.splitlines()).encode(
        "utf-8", "backslashreplace"
    )
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError:
        if fd != STDERR:  # where errors cannot be told, there is nobody to tell
            raise
