"""One run at a time in a directory; the lock of one that has died is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import data_samples
import mpi_jobs
import pytest

from mpicnn.errors import UserError
from mpicnn.run.lock import LOCK, SILENT_S, Holder, RunLock, began
from mpicnn.run.metrics import read_rows

JOB = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1"}
ELSEWHERE = replace(Holder.me(JOB), host="node9", pid=4)


def left(directory: Path, holder: Holder, silent: float = 0) -> Path:
    """Leave a lock as another process does that gave its last sign of life `silent` s ago."""
    path = directory / LOCK
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - silent
    os.utime(path, (then, then))
    return path


def test_a_directory_is_held_once_and_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path, {}):
            with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on .* 0 s ago"):
                RunLock(tmp_path, {}).__enter__()
            assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        assert not list(tmp_path.iterdir())


ALIVE = {
    "elsewhere, just now": (ELSEWHERE, 5.0),
    "elsewhere, the same go of the job": (ELSEWHERE, SILENT_S - 10),
    "elsewhere, another job": (replace(ELSEWHERE, job="16", restart=0), 5.0),
    "elsewhere, no job": (replace(ELSEWHERE, job="", restart=0), 5.0),
    "here": (Holder.me({}), 10 * SILENT_S),
}
DEAD = {
    "elsewhere, silent": (ELSEWHERE, SILENT_S + 10),
    "elsewhere, the job's earlier go": (replace(ELSEWHERE, restart=0), 0.0),
    "here, the number is another's now": (replace(Holder.me({}), began="1"), 0.0),
}


@pytest.mark.parametrize("case", ALIVE)
def test_the_lock_of_a_living_process_is_respected(case: str, tmp_path: Path) -> None:
    holder, silent = ALIVE[case]
    path = left(tmp_path, holder, silent)
    before = path.read_text()
    with pytest.raises(UserError) as refused:
        RunLock(tmp_path, JOB).__enter__()
    for word in (f"process {holder.pid} on {holder.host}", holder.job and f"job {holder.job}"):
        assert word in str(refused.value)
    assert path.read_text() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("case", DEAD)
def test_the_lock_of_a_dead_process_is_taken_over(case: str, tmp_path: Path) -> None:
    left(tmp_path, *DEAD[case])
    with RunLock(tmp_path, JOB):
        assert json.loads((tmp_path / LOCK).read_text()) == asdict(Holder.me(JOB))
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    script = "import sys\nfrom pathlib import Path\nfrom mpicnn.run.lock import RunLock\n"
    script += "import os\nRunLock(Path(sys.argv[1]), {}).__enter__()\nos._exit(1)"
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    assert (tmp_path / LOCK).exists()
    with RunLock(tmp_path, {}):
        pass
    assert began(os.getpid()) and not began(2**22 + 1)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"host": 1}', "\x00"])
def test_what_is_no_lock_of_ours_does_not_lock(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(content)
    with RunLock(tmp_path, {}):
        pass


RACE = """
import sys, time
from pathlib import Path
from mpicnn.errors import UserError
from mpicnn.run.lock import RunLock
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    with RunLock(Path(sys.argv[1]), {}):
        print("held")
        time.sleep(1)
except UserError:
    print("refused")
"""


@pytest.mark.limit(60)
def test_of_several_that_find_a_dead_lock_one_takes_it_over(tmp_path: Path) -> None:
    left(tmp_path, replace(Holder.me({}), began="1"))
    command = [sys.executable, "-c", RACE, str(tmp_path), str(time.time() + 2)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    said = sorted(job.communicate(timeout=30)[0].strip() for job in jobs)
    assert said == ["held"] + 5 * ["refused"]
    assert not list(tmp_path.iterdir())


@pytest.mark.limit(60)
def test_a_second_job_in_a_run_directory_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    data = data_samples.sample(tmp_path / "d.h5", train=37, test=11, shape=(1, 12, 12)).path
    run = tmp_path / "run"
    options = ("-m", "mpicnn.train", "--data", data, "--run-dir", run, "--threads", 1, "--batch", 8)
    first = mpi_jobs.start(2, *options, "--epochs", 100_000, "--evaluate-every", 0)
    end = time.monotonic() + 20
    while time.monotonic() < end and not ((run / "log.txt").exists() and (run / LOCK).exists()):
        time.sleep(0.05)
    second = mpi_jobs.run(2, *options, "--resume", "--epochs", 200_000)
    assert second.code == 2 and f"run directory {run}: in use by" in second.err
    first.send_signal(signal.SIGUSR1)
    assert mpi_jobs.finish(first, 20).code == 75
    steps = [row.step for row in read_rows(run / "metrics.csv")]
    assert steps == sorted(steps) and steps
    assert not (run / LOCK).exists()
