"""What the commands do; the modules that start them only start MPI first."""

from __future__ import annotations

from importlib import import_module
from typing import NoReturn

from mpicnn.job.launch import launch


def start(name: str) -> NoReturn:
    """Run `main(comm)` of `mpicnn.commands.<name>` on all ranks and leave with its exit code.

    The command is imported under `launch`, so that a rank that fails to import it ends the job.
    """
    launch(lambda comm: import_module(f"mpicnn.commands.{name}").main(comm))
