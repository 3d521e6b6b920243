"""What commands set up alike: where settings come from, threads, who makes progress."""

import os
import socket

import pytest
from mpi4py import MPI

from mpicnn.devices import choice as devices
from mpicnn.errors import UserError
from mpicnn.run import setup


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], False),
        (["--resume", "--run-dir", "runs/a"], False),
        (["--no-flip", "--rate=3", "--plan", "mine.toml"], False),
        (["my.toml"], True),
        (["--resume", "my.toml"], True),
        (["--run-dir", "runs/a", "my.toml", "--resume"], True),
    ],
)
def test_a_settings_file_is_told_from_an_options_value(argv, expected):
    assert setup._names_file(argv) is expected


class Ranks:
    """Ranks that may use the given cores of hosts; the first is this one."""

    def __init__(self, *others):
        self.others = others

    def texts(self, mine):
        return [mine, *self.others]


HERE = socket.gethostname()


@pytest.mark.parametrize(
    "cores, others, threads",
    [
        ({0, 1, 2, 3}, (), 4),
        ({0, 1, 2, 3}, (f"{HERE}:0 {HERE}:1 {HERE}:2 {HERE}:3",), 2),
        ({0, 1}, (f"{HERE}:2 {HERE}:3",), 2),
        ({0, 1, 2}, (f"{HERE}:1",), 2),
        ({0, 1}, ("elsewhere:0 elsewhere:1",), 2),
        ({0}, (f"{HERE}:0", f"{HERE}:0"), 1),
    ],
)
def test_ranks_divide_the_cores_that_they_share(monkeypatch, cores, others, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert devices.cores_per_rank(Ranks(*others)) == threads


@pytest.mark.parametrize("thread, progress", [("on", "thread"), ("off", "poll"), ("auto", "poll")])
def test_on_one_host_a_thread_makes_progress_only_if_asked_for(subcomm, thread, progress):
    assert setup.progress_of(subcomm(2), thread) == progress


def test_over_several_hosts_a_thread_makes_progress(subcomm, monkeypatch):
    comm = subcomm(2)
    monkeypatch.setattr(socket, "gethostname", lambda: f"host{comm.rank}")
    assert setup.progress_of(comm, "auto") == "thread"
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
    assert setup.progress_of(comm, "auto") == "poll"
    with pytest.raises(UserError, match="progress-thread on: this MPI"):
        setup.progress_of(comm, "on")
