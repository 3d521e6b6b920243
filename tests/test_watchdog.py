"""A rank that holds the others up is named, and one Ctrl-C ends the job."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

import mpi_jobs
import pytest

from mpicnn.job.limits import START_S, Limits
from mpicnn.job.watchdog import Answer, report

HOST = socket.gethostname()
TRAIN = ("-m", "mpicnn.train", "--epochs", 10_000, "--evaluate-every", 0, "--threads", 1,
         "--progress", "off", "--stall-warning", 1)  # fmt: skip


def test_the_report_names_who_is_waited_for() -> None:
    """Silent ranks first, then busy ones, then the places where others wait; many are counted."""
    waits = Answer("fc6, all-gather, forward (after step 12)", True, 61.2)
    reading = Answer("data (after step 12)", False, 60.4)
    hosts = [f"node{rank // 2}" for rank in range(30)]
    assert report({0: waits, 1: reading, 2: None, 3: waits}, hosts).splitlines() == [
        "no progress for 61 s:",
        "  rank 2 on node1 does not answer: stopped, or host down",
        "  rank 1 on node0 is at data (after step 12) for 60 s",
        "  2 ranks (0, 3) wait at fc6, all-gather, forward (after step 12)",
    ]
    assert "  rank 2 does not answer" in report({2: None, 0: waits}, [""] * 3)
    many = report({rank: None if rank % 2 else waits for rank in range(30)}, hosts).splitlines()
    assert many[9] == "  and 7 ranks more" and len(many) == 11
    assert many[10].startswith("  15 ranks (0, 2, 4, 6, 8, 10, 12, 14, …) wait at fc6")


def until(seen: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Wait until something is seen."""
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.mark.limit(120)
def test_a_stopped_rank_is_named_and_one_interrupt_ends_the_job(tmp_path: Path) -> None:
    """Also where it is the first rank; and a rank that goes on lets the run go on."""
    run = tmp_path / "run"
    job = mpi_jobs.start(3, *TRAIN, "--run-dir", run)
    ranks = mpi_jobs.processes(job, 3)
    log = run / "log.txt"

    def told(text: str) -> Callable[[], bool]:
        return lambda: log.exists() and text in log.read_text()

    try:
        until(told("step "), "no step")
        os.kill(ranks[1], signal.SIGSTOP)
        until(told(f"rank 1 on {HOST} does not answer"), "rank 1 is not named")
        # the others wait for it, in one place or in two
        waiting = [line for line in log.read_text().splitlines() if " wait" in line]
        named = " ".join(line.split(" wait")[0].split("(")[-1] for line in waiting)
        assert re.findall(r"\d", named) == ["0", "2"]
        assert all("(after step " in line for line in waiting) and len(waiting) in (1, 2)
        os.kill(ranks[1], signal.SIGCONT)
        until(told("the run goes on, after "), "it does not go on")
        os.kill(ranks[0], signal.SIGSTOP)
        until(told(f"rank 0 on {HOST} does not answer"), "rank 0 is not named")
        job.send_signal(signal.SIGINT)
        ended = mpi_jobs.finish(job, 20)
        assert ended.code == 130, ended.err
        assert "rank 0" in ended.err and "does not answer" in ended.err
    finally:
        job.kill()


@pytest.mark.limit(60)
def test_a_stall_ends_the_job_where_that_is_asked_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = mpi_jobs.start(2, *TRAIN, "--run-dir", run, "--stall-abort", 2)
    try:
        rank = mpi_jobs.processes(job, 2)[1]
        until(lambda: (run / "log.txt").exists() and "step " in (run / "log.txt").read_text(), "")
        os.kill(rank, signal.SIGSTOP)
        ended = mpi_jobs.finish(job, 30)
        assert ended.code == 1
        assert "mpicnn: error: no progress for" in ended.err and "stall-abort" in ended.err
        assert f"rank 1 on {HOST} does not answer" in (run / "log.txt").read_text()
    finally:
        job.kill()


STOPPING = """
import os, signal, sys
def stop(event, arguments):
    if event == "import" and arguments[0] == "{module}":
        os.kill(os.getpid(), signal.SIGSTOP)
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "{rank}":
    sys.addaudithook(stop)
"""


@pytest.mark.limit(60)
@pytest.mark.parametrize(
    ("rank", "module", "command"),
    [
        (0, "mpicnn.run.setup", TRAIN),
        (1, "mpicnn.run.load", ("-m", "mpicnn.predict", "nothing", "no.png")),
        (1, "mpicnn.run.testing", ("-m", "mpicnn.evaluate", "nothing")),
    ],
)
def test_a_rank_that_stops_before_the_settings_are_read_is_named(
    tmp_path: Path, rank: int, module: str, command: tuple[object, ...]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STOPPING.format(rank=rank, module=module))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = mpi_jobs.start(2, *command, "--stall-abort=3", PYTHONPATH=path)
    try:
        ended = mpi_jobs.finish(job, 40)
        assert ended.code == 1
        assert f"rank {rank} does not answer" in ended.err
        assert f"rank {1 - rank} waits at start" in ended.err and "stall-abort" in ended.err
    finally:
        job.kill()


def test_limits_hold_before_the_settings_are_read() -> None:
    assert Limits.early(["train", "--epochs", "3"]) == Limits()
    assert Limits.early(["train", "--stall-abort", "9", "--stall-warning=0"]) == Limits(inf, 9)
    assert Limits.early(["train", "--stall-warning", "soon", "--stall-abort"]) == Limits()
    assert Limits().start == START_S and Limits.early(["--stall-abort=9"]).start == 9


@pytest.mark.limit(60)
def test_mpi_does_not_wait_for_ever_for_a_rank_that_does_not_come(tmp_path: Path) -> None:
    """The rank stops before it starts MPI; the other one is inside MPI, and cannot ask."""
    module = "mpi4py"
    (tmp_path / "sitecustomize.py").write_text(STOPPING.format(rank=0, module=module))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    job = mpi_jobs.start(2, *TRAIN, "--stall-abort", 3, PYTHONPATH=path)
    try:
        ended = mpi_jobs.finish(job, 40)
        assert ended.code != 0
        assert "Timeout (0:00:03)!" in ended.err and "mpicnn/job/launch.py" in ended.err
    finally:
        job.kill()
