"""What the commands do; the modules that start them only start MPI first."""

from __future__ import annotations

import faulthandler
import sys
from importlib import import_module
from keyword import iskeyword
from typing import Any, NoReturn

from mpicnn.job.limits import Limits
from mpicnn.job.output import escape_what_cannot_be_shown
from mpicnn.job.signals import Signals

WORDS = (
    "train", "evaluate", "predict", "plan", "simulate", "reproduce", "report", "export", "import",
    "data",
)  # fmt: skip
"""The first words of all commands."""


def start(name: str) -> NoReturn:
    """Run `main(comm, argv)` of `mpicnn.commands.<name>` on all ranks and exit with its code.

    `argv` are the command's words and arguments. The command is imported under `launch`, so that a
    rank that fails to import it ends the job. A training gets `signals` too, which note from the
    first moment on that it is to stop.
    """
    escape_what_cannot_be_shown()
    argv = [name, *sys.argv[1:]]
    # MPI waits for ever for ranks that do not come, and keeps Python's other threads from running
    faulthandler.dump_traceback_later(Limits.early(argv).start, exit=True)
    if name != "train":
        _launch(name, argv)
    signals = Signals()
    with signals.held():
        from mpicnn.job import launch  # noqa: F401  (it starts MPI)
    _launch(name, argv, signals)


def _launch(name: str, *arguments: Any) -> NoReturn:
    from mpicnn.job.launch import launch

    faulthandler.cancel_dump_traceback_later()
    module = f"{name}_" if iskeyword(name) else name
    launch(lambda comm: import_module(f"mpicnn.commands.{module}").main(comm, *arguments))


def console() -> NoReturn:
    """Run the command that the first argument names: the console script `mpicnn`."""
    sys.argv[0] = "mpicnn"
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in WORDS:
        del sys.argv[1]
        start(word)
    start("unknown")
