"""Read a command's settings, and watch the ranks from before that on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mpicnn.job.activity import Activity
from mpicnn.job.limits import Limits
from mpicnn.job.signals import Signals
from mpicnn.job.watchdog import Watchdog
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
    with Watchdog(comm, Activity(), signals or Signals(), Limits.early(argv)) as watchdog:
        settings = read_settings(comm, kind, argv)
        watchdog.limits = Limits.of(settings.stall_warning, settings.stall_abort)
        watchdog.learn_hosts()
        yield settings, watchdog
