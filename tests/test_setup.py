"""What commands set up alike: where settings come from, who makes progress."""

import socket

import pytest
from mpi4py import MPI

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
