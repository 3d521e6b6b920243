"""A run that is asked to stop, whenever that is: saved, and resumed to the same end."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import data_samples
import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.checkpoint import read_meta, read_tensors
from mpicnn.errors import StoppedError
from mpicnn.job.signals import STOPS, Signals
from mpicnn.run.metrics import read_rows
from mpicnn.run.training import Trained, train
from mpicnn.settings.definitions import Settings

STEPS = 10  # of 37 images in batches of 8, two epochs; 3 batches of 4 in a test


class After(Signals):
    """Ask for a stop when it is looked for the `count`-th time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def run(directory: Path, images: Path, signals: Signals) -> Trained:
    """Train, or go on, until the signals want it to stop."""
    settings = Settings(
        data=str(images), batch=8, eval_batch=4, epochs=2, precision="float64", threads=1, keep=9,
        run_dir=str(directory), resume=directory.exists(), progress="off",
    )  # fmt: skip
    return train(MPI.COMM_SELF, settings, signals)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small.h5"
    return data_samples.sample(path, train=37, test=11, shape=(1, 12, 12)).path


@pytest.mark.limit(120)
def test_a_run_that_stops_anywhere_goes_on_to_the_same_end(tmp_path: Path, images: Path) -> None:
    """Between any two steps, and between any two batches of a test, which is then made anew."""
    whole = tmp_path / "whole"
    assert run(whole, images, Signals()).finished
    rows = [(r.step, r.split) for r in read_rows(whole / "metrics.csv")]
    ends = {r.step: r.loss for r in read_rows(whole / "metrics.csv") if r.split == "test"}
    last = read_tensors(whole / "checkpoints" / f"step-{STEPS:08d}.h5")
    places = set()
    for count in range(STEPS + 2 * 3):
        directory = tmp_path / f"stopped-{count}"
        stopped = run(directory, images, After(count))
        assert not stopped.finished
        newest = read_meta(directory / "checkpoints" / f"step-{stopped.steps:08d}.h5")
        places.add((stopped.steps, newest["test_due"]))
        assert run(directory, images, Signals()).finished
        found = read_rows(directory / "metrics.csv")
        # a line of training ends where the run was stopped, so that there may be one more
        assert set(rows) <= {(r.step, r.split) for r in found}
        assert {r.step: r.loss for r in found if r.split == "test"} == ends
        again = read_tensors(directory / "checkpoints" / f"step-{STEPS:08d}.h5")
        assert all(np.array_equal(again[name], last[name]) for name in last)
    assert {(0, False), (3, False), (5, True), (STEPS, True)} <= places


def test_a_run_stops_while_it_measures_speeds(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, with the code of a run that can go on: nothing is lost, nothing is there to save."""

    def measure(*_: object) -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        time.sleep(0.1)
        pytest.fail("it measures on")

    monkeypatch.setattr("mpicnn.devices.measuring.measure", measure)
    settings = Settings(data=str(images), shares="measured", run_dir=str(tmp_path / "run"))
    with (
        Signals() as signals,
        pytest.raises(StoppedError, match="stopped by SIGUSR1 while") as told,
    ):
        train(MPI.COMM_SELF, settings, signals)
    assert told.value.code == 75 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_during_the_start_of_mpi_is_kept(number: signal.Signals) -> None:
    """Also where MPI puts a handler of its own in place of ours meanwhile, as MPICH does."""
    before = signal.getsignal(number)
    signals = Signals()
    try:
        with signals.held():
            signal.pthread_kill(threading.get_ident(), number)  # other threads do not block it
            assert not signals.stopping()
            signal.signal(number, signal.SIG_DFL)
        assert signals.stopping() and signals.requested == number.name
    finally:
        signal.signal(number, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


LISTENING = """
import sys
from mpicnn.commands import start
from mpicnn.job.signals import Signals

def listen(self, listen=Signals._listen):
    before = listen(self)
    print("listening", flush=True)
    return before

Signals._listen = listen
start("train")
"""


@pytest.mark.limit(120)
@pytest.mark.parametrize("ranks", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_no_signal_is_lost_while_a_job_starts(
    ranks: int, number: signal.Signals, tmp_path: Path, images: Path
) -> None:
    """From before MPI is imported on, it saves and says so with its code."""
    options = ("--data", images, "--epochs", 100_000, "--evaluate-every", 0, "--threads", 1)
    for delay in (0, 0.05, 0.2, 0.6):
        directory = tmp_path / f"{delay}"
        job = mpi_jobs.start(ranks, "-c", LISTENING, *options, "--run-dir", directory)
        assert job.stdout
        for _ in range(ranks or 1):
            assert job.stdout.readline() == "listening\n"
        time.sleep(delay)
        job.send_signal(number)
        ended = mpi_jobs.finish(job, 25)
        assert ended.code == 75, ended.err
        assert (directory / "checkpoints").is_dir()
