"""Read a command's settings, and watch the ranks from before that on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from mpicnn.job.activity import Activity
from mpicnn.job.signals import Signals
from mpicnn.job.watchdog import Limits, Watchdog
from mpicnn.run.setup import read_settings
from mpicnn.settings.groups import Stalls

if TYPE_CHECKING:
    from mpi4py import MPI

AnyStalls = TypeVar("AnyStalls", bound=Stalls)


@contextmanager
def watched(
    comm: MPI.Intracomm, kind: type[AnyStalls], argv: Sequence[str], signals: Signals | None = None
) -> Iterator[tuple[AnyStalls, Watchdog]]:
    """Give a command's settings, and the watchdog that follows what this rank does. Collective.

    Raises what `read_settings` does.
    """
    with Watchdog(comm, Activity(), signals or Signals(), early_limits(argv)) as watchdog:
        settings = read_settings(comm, kind, argv)
        watchdog.limits = Limits.of(settings.stall_warning, settings.stall_abort)
        watchdog.learn_hosts()
        yield settings, watchdog


def early_limits(argv: Sequence[str]) -> Limits:
    """Return the limits that hold until rank 0 has read the settings: those of flags, if right."""
    found = {"--stall-warning": Limits.warning, "--stall-abort": 0.0}
    words = [word for arg in argv for word in arg.split("=", 1)]
    for flag, value in pairwise(words):
        if flag in found:
            with suppress(ValueError):
                found[flag] = max(0.0, float(value))
    return Limits.of(*found.values())
