"""Tell which rank holds the others up: a thread beside each rank's own.

While all get on, ranks tell each other nothing. A rank that has not got on for long asks all others
what they do; one that does not answer is stopped, or its host is down. Any rank may ask, lower ones
do so first: the stopped one may be the first of them.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final, NoReturn, Self

from mpi4py import MPI

from mpicnn.job.activity import Activity
from mpicnn.job.launch import abort
from mpicnn.job.limits import Limits
from mpicnn.job.output import say
from mpicnn.job.signals import Signals
from mpicnn.job.waiting import wait

LOOK_S: Final = 1.0  # between two looks while all is well
SOON_S: Final = 0.1  # between two looks once a rank has not got on for half of the limit
APART_S: Final = 0.25  # a rank leaves the next lower one this long to ask
ANSWER_S: Final = 3.0  # a rank that runs answers within two looks
LISTED: Final = 8
HOST_BYTES: Final = 64

_QUESTION, _ANSWER = 32_766, 32_767  # the highest tags that MPI promises; nobody else uses them


@dataclass(frozen=True)
class Answer:
    """Hold what a rank does, whether it waits for others there, and for how long already (s)."""

    doing: str
    waits: bool
    seconds: float


class Watchdog:
    """Watch a job's ranks while entered, each on its own: a rank may be stuck before it enters.

    `activity` is this rank's own. Where it has not changed for long, `signals` learns it, so that
    one Ctrl-C ends the job. What is found goes to stderr, and to `note` beside it. `limits` may
    change meanwhile. Where MPI does not allow threads, nothing is watched.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        activity: Activity,
        signals: Signals,
        limits: Limits = Limits(),  # noqa: B008  (it cannot change)
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.comm = comm
        self.hosts = [""] * comm.size
        self.activity = activity
        self.signals = signals
        self.limits = limits
        self.note = note
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._sent: list[MPI.Request] = []
        self._asked_at = -1.0  # when another rank asked last
        self._told = False

    def __enter__(self) -> Self:
        if self.comm.size > 1 and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        if self._thread is not None:
            self._thread.join()

    def learn_hosts(self) -> None:
        """Exchange the names of the ranks' hosts, to be told with their numbers. Collective."""
        self.hosts = _hosts(self.comm)

    def _run(self) -> None:
        seen = self.activity.count
        self._since = time.monotonic()
        due, limits = self.limits.warning, self.limits
        while not self._leaving.wait(self._pause()):
            self._hear()
            if limits != self.limits:
                due, limits = self.limits.warning, self.limits
            if self.activity.count != seen:
                if self._told:
                    self._tell(f"note: the run goes on, after {self._seconds():.0f} s")
                seen, self._since, due = self.activity.count, time.monotonic(), self.limits.warning
                self._told = self.signals.stalled = False
                continue
            self.signals.stalled = self._seconds() >= self.limits.first
            late = self._seconds() - APART_S * self.comm.rank
            if self.limits.abort and late >= self.limits.abort:
                self._end()
            if late >= due:
                # one that was asked since the last turn knows that another rank tells
                if self._asked_at < self._since + due / 2:
                    self._warn(seen)
                due *= 2

    def _seconds(self) -> float:
        """Return for how long this rank has not got on."""
        return time.monotonic() - self._since

    def _pause(self) -> float:
        soon = self._seconds() > self.limits.first / 2
        return SOON_S if soon else min(LOOK_S, self.limits.first / 4)

    def _warn(self, seen: int) -> None:
        """Ask all ranks and tell what they answer, unless this one gets on meanwhile."""
        answers = self._ask()
        if self.activity.count == seen and not self._leaving.is_set():
            self._told = True
            self._tell(f"{report(answers, self.hosts)}\n  Ctrl-C ends the job")

    def _end(self) -> NoReturn:
        text = report(self._ask(), self.hosts)
        text = f"mpicnn: error: {text}\n  ended after {self._seconds():.0f} s (stall-abort)"
        self.note(text)
        abort(text, 1)

    def _tell(self, text: str) -> None:
        say(None, text)
        self.note(text)

    def _ask(self) -> dict[int, Answer | None]:
        """Return every rank's answer, None for ranks that do not answer."""
        number = time.monotonic_ns()
        others = [rank for rank in range(self.comm.size) if rank != self.comm.rank]
        for rank in others:
            self._send(rank, _QUESTION, [number])
        answers: dict[int, Answer | None] = dict.fromkeys(range(self.comm.size))
        answers[self.comm.rank] = self._own()
        until = time.monotonic() + ANSWER_S
        while not all(answers.values()) and time.monotonic() < until and not self._leaving.is_set():
            for rank, (to, *answer) in self._hear():
                if to == number:
                    answers[rank] = Answer(*answer)
            self._leaving.wait(SOON_S / 4)
        return answers

    def _own(self) -> Answer:
        return Answer(str(self.activity), self.activity.waits, self._seconds())

    def _hear(self) -> list[tuple[int, list[Any]]]:
        """Answer the questions that have come; return the answers that have, by rank."""
        answers = []
        status = MPI.Status()
        for tag in (_QUESTION, _ANSWER):
            while self.comm.Iprobe(MPI.ANY_SOURCE, tag, status):
                rank = status.source
                data = bytearray(status.Get_count(MPI.BYTE))
                self.comm.Recv([data, MPI.BYTE], rank, tag)
                content = json.loads(data)
                if tag == _QUESTION:
                    self._asked_at = time.monotonic()
                    self._send(rank, _ANSWER, [*content, *astuple(self._own())])
                else:
                    answers.append((rank, content))
        return answers

    def _send(self, rank: int, tag: int, content: list[Any]) -> None:
        """Begin to send: a stopped rank does not receive, and nobody waits for that."""
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self.comm.Isend([json.dumps(content).encode(), MPI.BYTE], rank, tag))


def report(answers: Mapping[int, Answer | None], hosts: Sequence[str]) -> str:
    """Return in lines which ranks hold the others up, and where these wait.

    Those that do not answer come first, then those at work, then those that wait for them, of
    which the ones in the same place share a line. `hosts` are "" where they are not known yet.
    """
    silent: list[str] = []
    busy: list[str] = []
    waiting: dict[str, list[int]] = {}
    for rank, answer in answers.items():
        who = f"rank {rank} on {hosts[rank]}" if hosts[rank] else f"rank {rank}"
        if answer is None:
            silent.append(f"{who} does not answer: stopped, or host down")
        elif answer.waits:
            waiting.setdefault(answer.doing, []).append(rank)
        else:
            busy.append(f"{who} is at {answer.doing} for {answer.seconds:.0f} s")
    lines = silent + busy
    if len(lines) > LISTED:
        lines[LISTED:] = [f"and {len(lines) - LISTED} ranks more"]
    for place, ranks in waiting.items():
        some = ", ".join(map(str, ranks[:LISTED])) + (", …" if len(ranks) > LISTED else "")
        who = f"rank {some} waits" if len(ranks) == 1 else f"{len(ranks)} ranks ({some}) wait"
        lines.append(f"{who} at {place}")
    longest = max(answer.seconds for answer in answers.values() if answer)
    return "\n  ".join([f"no progress for {longest:.0f} s:", *lines])


def _hosts(comm: MPI.Intracomm) -> list[str]:
    """Return every rank's host name. Collective."""
    mine = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    every = bytearray(HOST_BYTES * comm.size)
    wait(comm.Iallgather([mine, MPI.BYTE], [every, MPI.BYTE]))
    names = [every[at : at + HOST_BYTES] for at in range(0, len(every), HOST_BYTES)]
    return [bytes(name).rstrip(b"\0").decode(errors="replace") for name in names]
