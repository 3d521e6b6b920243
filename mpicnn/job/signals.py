"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self

from mpicnn.errors import StoppedError

STOPS: Final = (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP)
"""What schedulers, launchers and closed terminals send; Ctrl-C is SIGINT."""


class Signals:
    """Turn SIGUSR1, SIGTERM, SIGHUP and SIGINT into `requested`, the signal's name, while entered.

    Each rank sees its own flag, which travels with the sums of losses of every step. A SIGINT after
    another request, or while the ranks are `stalled`, raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self.stalled = False
        self._what = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = self._listen()
        return self

    def _listen(self) -> dict[signal.Signals, Any]:
        """Put our handlers in place; return those that were there."""
        return {each: signal.signal(each, self._note) for each in (*STOPS, signal.SIGINT)}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def stopping(self) -> bool:
        """Return whether a signal has asked this rank to stop."""
        return self.requested is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Note signals from now on to the end of the process, the first ones after MPI has started.

        They wait meanwhile: MPICH puts a handler of its own in place of that for SIGUSR1.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self._listen()
        try:
            yield
        finally:
            self._listen()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    @contextmanager
    def at_once(self, what: str) -> Iterator[None]:
        """Raise `StoppedError` where a signal comes, or has come, during `what`.

        For what takes long and leaves nothing to save.
        """
        self._what = what
        try:
            self._raise()
            yield
        finally:
            self._what = ""

    def _raise(self) -> None:
        if self.requested and self._what:
            raise StoppedError(
                f"stopped by {self.requested} {self._what}; there is nothing to save"
            )

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.requested or self.stalled):
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        self._raise()
