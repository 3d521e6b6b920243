"""Run a main function on every rank, so that however one rank fails, the whole job ends.

The entry module imports this module first and everything else inside its `main`: MPI is then
initialized before anything can fail, and what fails on one rank is seen by `launch`. (Launchers
wait for ever for a rank that dies before MPI is initialized, or finds no partner to finalize with.)
mpi4py's default thread level (multiple) is kept: below it MPICH's blocking calls spin without
yielding the core, and a failing thread could not legally abort the job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import math
import os
import select
import signal
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, ParamSpec, Self, TypeVar

from mpi4py import MPI

from mpicnn.config import environment
from mpicnn.errors import UserError
from mpicnn.polling import wait

P = ParamSpec("P")
R = TypeVar("R")

GRACE_S: Final = 2.0  # a rank that failed waits this long for the others to fail likewise
PATIENCE_S: Final = 600.0  # a rank that finished waits this long for the others to finish
FORWARD_S: Final = 0.3  # an aborted launcher drops the output it has not passed on yet
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
INTERRUPTED: Final = 128 + signal.SIGINT


def launch(
    main: Callable[[MPI.Intracomm], int | None], environ: Mapping[str, str] | None = None
) -> NoReturn:
    """Run `main(COMM_WORLD)` and leave with one exit code, the same on every rank.

    All ranks meet at the end. A `UserError`, exit or interrupt that all of them end in is reported
    once; if some are still at work, or on any other exception in any thread, the rank says why on
    stderr and aborts the job. `environ` is the launcher's environment (default: the process's).
    """
    world = MPI.COMM_WORLD
    faulthandler.enable()
    threading.excepthook = _abort_from_thread
    try:
        _check_launcher(world, environment() if environ is None else environ)
        meeting, duplicated = world.Idup()
        wait(duplicated)
        code = _leave(meeting, main)
        if code:
            # A launcher that ends the other ranks when the first leaves must not change their code.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except BaseException as error:
        _abort_on(error)
    sys.exit(code)


def agree(comm: MPI.Intracomm, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` on every rank; if it raises `UserError` on any, raise that on all of them.

    The lowest failing rank's message is taken, with its rank unless all ranks say the same.
    """
    failure: UserError | None = None
    try:
        result = function(*args, **kwargs)
    except UserError as error:
        failure = error
    code, text = _first_failure(comm, failure.code if failure else 0, str(failure or ""))
    if code:
        agreed = UserError(text)
        agreed.code = code
        raise agreed from failure
    return result


def from_root(
    comm: MPI.Intracomm, function: Callable[P, str | None], *args: P.args, **kwargs: P.kwargs
) -> str:
    """Call `function` on rank 0 alone and return its text on every rank ("" for None).

    A `UserError` that it raises is raised on all of them.
    """
    failure: UserError | None = None
    text = ""
    if comm.rank == 0:
        try:
            text = function(*args, **kwargs) or ""
        except UserError as error:
            failure, text = error, str(error)
    code = array("q", [failure.code if failure else 0])
    wait(comm.Ibcast([code, MPI.INT64_T], root=0))
    text = broadcast_text(comm, text)
    if code[0]:
        agreed = UserError(text)
        agreed.code = code[0]
        raise agreed from failure
    return text


def same(comm: MPI.Intracomm, what: str, digest: bytes) -> None:
    """Raise `UserError` on every rank, naming the odd ranks, unless `digest` is the same on all."""
    mine = hashlib.sha256(digest).digest()
    every = bytearray(len(mine) * comm.size)
    wait(comm.Iallgather([mine, MPI.BYTE], [every, MPI.BYTE]))
    starts = range(0, len(every), len(mine))
    odd = [r for r, at in enumerate(starts) if every[at : at + len(mine)] != every[: len(mine)]]
    if odd:
        ranks = ", ".join(map(str, odd))
        raise UserError(
            f"{what} differs between rank 0 and rank(s) {ranks} of {comm.size}: "
            "start every rank with the same code, settings and files"
        )


def broadcast_text(comm: MPI.Intracomm, text: str | None) -> str:
    """Return rank 0's `text` on every rank; the other ranks' is not looked at."""
    data = bytearray((text or "").encode("utf-8", "surrogateescape"))
    length = array("q", [len(data)])
    wait(comm.Ibcast([length, MPI.INT64_T], root=0))
    if comm.rank:
        data = bytearray(length[0])
    wait(comm.Ibcast([data, MPI.BYTE], root=0))
    return data.decode("utf-8", "surrogateescape")


def say(rank: int | None, text: str, fd: int = 2) -> None:
    """Write `text` in one piece, each line marked with `rank`, so that ranks' lines stay whole."""
    mark = "" if rank is None else f"[rank {rank}] "
    data = "".join(f"{mark}{line}\n" for line in text.splitlines()).encode(
        "utf-8", "backslashreplace"
    )
    while data:
        data = data[os.write(fd, data) :]


class Signals:
    """Turn SIGUSR1, SIGTERM and SIGINT into `requested`, the signal's name, while entered.

    Each rank sees its own flag, which travels with the sums of losses of every step. A SIGINT after
    another request raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name


def _launcher(environ: Mapping[str, str]) -> tuple[int | None, int]:
    """Return size and rank as the launchers of MPICH (and SLURM's pmi2) and Open MPI tell them."""
    for size, rank in (
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if environ.get(size, "").isdecimal():
            return int(environ[size]), int(environ.get(rank, "0"))
    return None, 0


def _check_launcher(world: MPI.Intracomm, environ: Mapping[str, str]) -> None:
    size, rank = _launcher(environ)
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if size is None and world.size == 1 and tasks.isdecimal():
        # srun without an MPI plugin says nothing else; with one, a job of several parts miscounts.
        size, rank = int(tasks), int(environ.get("SLURM_PROCID", "0"))
    if size is None or size == world.size:
        return
    if rank:  # each process believes to be alone: one of them speaks, the others let it
        time.sleep(GRACE_S)
        os._exit(UserError.code)
    library = MPI.Get_library_version().splitlines()[0].strip(" \0")
    raise UserError(
        f"the launcher started {size} processes, but mpi4py's library ({library}) sees "
        f"{world.size}: mpirun and mpi4py belong to different MPIs; use that library's own mpirun, "
        "or the srun --mpi that it needs"
    )


def _leave(meeting: MPI.Intracomm, main: Callable[[MPI.Intracomm], int | None]) -> int:
    """Run `main`, meet the other ranks and return the exit code of all."""
    code, text, patience = _ending(main)
    try:
        code, text = _first_failure(meeting, code, text, patience + 0.1 * meeting.rank)
    except TimeoutError:
        alone = f"left with exit code {code} while other ranks were still at work"
        _abort(f"mpicnn: error: {text or alone}", code or 1)
    if text and meeting.rank == 0:
        say(None, f"mpicnn: error: {text}")
    return code


def _ending(main: Callable[[MPI.Intracomm], int | None]) -> tuple[int, str, float]:
    """Run `main` and return exit code, error message and how long to wait for the other ranks."""
    try:
        code = main(MPI.COMM_WORLD) or 0
        sys.stdout.flush()
        return code, "", PATIENCE_S
    except UserError as error:
        return error.code, str(error), GRACE_S
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0, "", GRACE_S
        return 1, str(leave.code), GRACE_S
    except KeyboardInterrupt:
        return INTERRUPTED, "", GRACE_S
    except BrokenPipeError:
        if not _reader_left(1):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere
        return BROKEN_PIPE, "", GRACE_S


def _first_failure(
    comm: MPI.Intracomm, code: int, text: str, seconds: float = math.inf
) -> tuple[int, str]:
    """Return the lowest failing rank's code and text on every rank, or (0, "").

    Raise `TimeoutError` when the other ranks do not come within `seconds`.
    """
    data = bytearray(text.encode("utf-8", "backslashreplace"))
    digest = int.from_bytes(hashlib.sha256(data).digest()[:7])
    mine = array("q", (code, len(data), digest))
    every = array("q", bytes(len(mine) * mine.itemsize * comm.size))
    wait(comm.Iallgather([mine, MPI.INT64_T], [every, MPI.INT64_T]), seconds)
    failing = [rank for rank, other in enumerate(every[0::3]) if other]
    if not failing:
        return 0, ""
    first = failing[0]
    if comm.rank != first:
        data = bytearray(every[3 * first + 1])
    wait(comm.Ibcast([data, MPI.BYTE], root=first), seconds)
    alike = len(failing) == comm.size and len(set(every[2::3])) == 1
    mark = "" if alike or not data else f"rank {first}: "
    return every[3 * first], mark + data.decode()


def _reader_left(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _abort_from_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _abort_on(args.exc_value)


def _abort_on(error: BaseException) -> NoReturn:
    if isinstance(error, UserError):
        _abort(f"mpicnn: error: {error}", error.code)
    if isinstance(error, KeyboardInterrupt):
        _abort("mpicnn: error: interrupted", INTERRUPTED)
    _abort("".join(traceback.format_exception(error)), 1)


def _abort(text: str, code: int) -> NoReturn:
    world = MPI.COMM_WORLD
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        say(world.rank if world.size > 1 else None, text)
    if world.size > 1:
        time.sleep(FORWARD_S)
        world.Abort(code)
    os._exit(code)  # MPICH's Abort was seen to return before the launcher's kill arrives
