"""How ranks agree: on one error, on one text, on equal inputs."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mpi4py import MPI

from mpicnn.errors import UserError
from mpicnn.job.waiting import wait

P = ParamSpec("P")
R = TypeVar("R")


def agree(comm: MPI.Intracomm, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` on every rank; if it raises `UserError` on any, raise that on all of them.

    The lowest failing rank's message is taken, with its rank unless all ranks say the same.
    """
    failure: UserError | None = None
    try:
        result = function(*args, **kwargs)
    except UserError as error:
        failure = error
    code, text = first_failure(comm, failure.code if failure else 0, str(failure or ""))
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


def first_failure(
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
