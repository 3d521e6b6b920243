"""Run a main function on every rank, so that however one rank fails, the whole job ends.

The entry module imports this module first, after the handlers of signals at most, and everything
else inside its `main`: MPI is then initialized before anything can fail, and what fails on one rank
is seen by `launch`. (Launchers wait for ever for a rank that dies before MPI is initialized, or
finds no partner to finalize with.)
mpi4py's default thread level (multiple) is kept: below it MPICH's blocking calls spin without
yielding the core, and a failing thread could not legally abort the job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from mpi4py import MPI

from mpicnn.errors import UserError
from mpicnn.job import launcher
from mpicnn.job.agreement import first_failure
from mpicnn.job.environment import environment
from mpicnn.job.output import say
from mpicnn.job.signals import STOPS
from mpicnn.job.waiting import wait

GRACE_S: Final = 2.0  # a rank that failed waits this long for the others to fail likewise
PATIENCE_S: Final = 600.0  # a rank that finished waits this long for the others to finish
FORWARD_S: Final = 0.3  # an aborted launcher drops the output it has not passed on yet
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
INTERRUPTED: Final = 128 + signal.SIGINT


def launch(
    main: Callable[[MPI.Intracomm], int | None], environ: Mapping[str, str] | None = None
) -> NoReturn:
    """Run `main(COMM_WORLD)` and exit with one code, the same on every rank.

    All ranks meet at the end. A `UserError`, exit or interrupt that all of them end in is reported
    once; if some are still at work, or on any other exception in any thread, the rank says why on
    stderr and aborts the job. `environ` is the launcher's environment (default: the process's).
    """
    world = MPI.COMM_WORLD
    faulthandler.enable()
    threading.excepthook = _abort_from_thread
    try:
        _check_launcher(world, environment() if environ is None else environ)
        # not waited for yet: another rank may be stuck, and what watches for that is in `main`
        code = _leave(*world.Idup(), main)
        # Neither another request to stop nor a launcher that ends the other ranks when the first
        # one leaves may change the code.
        for number in STOPS if code else (signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    except BaseException as error:
        _abort_on(error)
    sys.exit(code)


def _check_launcher(world: MPI.Intracomm, environ: Mapping[str, str]) -> None:
    size, rank = launcher.size_and_rank(environ)
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "")
    if size is None and world.size == 1 and tasks.isdecimal():
        # srun without an MPI plugin says nothing else; with one, a job of several parts miscounts.
        size, rank = int(tasks), int(environ.get("SLURM_PROCID", "0"))
    if size is None or size == world.size:
        return
    if rank:  # each process believes to be alone: one of them speaks, the others let it
        time.sleep(GRACE_S)
        os._exit(UserError.code)
    library = " ".join(MPI.Get_library_version().splitlines()[0].strip(" \0").split())
    raise UserError(launcher.mismatch(environ, library, size, world.size))


def _leave(
    meeting: MPI.Intracomm, made: MPI.Request, main: Callable[[MPI.Intracomm], int | None]
) -> int:
    """Run `main`, meet the other ranks, once their communicator is `made`; return all's code."""
    code, text, patience = _ending(main)
    try:
        wait(made, patience)
        code, text = first_failure(meeting, code, text, patience + 0.1 * meeting.rank)
    except TimeoutError:
        alone = f"left with exit code {code} while other ranks were still at work"
        abort(f"mpicnn: error: {text or alone}", code or 1)
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
    except MemoryError as error:
        need = str(error) or "there is no more"
        text = f"not enough memory: {need}; use a smaller batch or network, or more ranks"
        return UserError.code, text, GRACE_S
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


def _reader_left(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _abort_from_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        _abort_on(args.exc_value)


def _abort_on(error: BaseException) -> NoReturn:
    if isinstance(error, UserError):
        abort(f"mpicnn: error: {error}", error.code)
    if isinstance(error, KeyboardInterrupt):
        abort("mpicnn: error: interrupted", INTERRUPTED)
    abort("".join(traceback.format_exception(error)), 1)


def abort(text: str, code: int) -> NoReturn:
    """Say why on stderr and end the whole job with this code."""
    world = MPI.COMM_WORLD
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        say(world.rank if world.size > 1 else None, text)
    if world.size > 1:
        time.sleep(FORWARD_S)
        world.Abort(code)
    os._exit(code)  # MPICH's Abort was seen to return before the launcher's kill arrives
