"""Start small jobs of several ranks from within a test, itself under a launcher or not."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "HYDI_", "HYDRA_", "MPI_LOCAL", "MPIR_")


@dataclass
class Job:
    """How a job ended: exit code, what it wrote, and the wall time in seconds."""

    code: int
    out: str
    err: str
    seconds: float


def environment(**extra):
    """Return this process's environment without what a launcher put there, and with `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHER_VARIABLES)}
    allowed = {  # Open MPI refuses to run as root and with more ranks than cores
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    return kept | allowed | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""} | extra


def start(ranks, *arguments, **extra):
    """Start Python with `arguments` on `ranks` ranks, on 0 for a process without a launcher."""
    launcher = []
    if ranks:
        found = Path(sys.executable).with_name("mpirun")
        mpirun = str(found) if found.exists() else shutil.which("mpirun")
        if mpirun is None:
            pytest.skip("no mpirun beside the interpreter or on PATH")
        launcher = [mpirun, "-n", str(ranks)]
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [*launcher, sys.executable, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(JOB_MARK=mark, **extra),
        start_new_session=True,
    )
    process.mark = mark
    return process


def processes(job, ranks, seconds=30):
    """Return the process of each rank of a job that was started with `ranks`, once all run."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = dict(
                    each.split("=", 1)
                    for each in (place / "environ").read_text(errors="replace").split("\0")
                    if "=" in each
                )
                rank = variables.get("PMI_RANK", variables.get("OMPI_COMM_WORLD_RANK"))
                if rank is not None and variables.get("JOB_MARK") == job.mark:
                    found[int(rank)] = int(place.name)
        if len(found) == ranks:
            return [found[rank] for rank in range(ranks)]
        time.sleep(0.1)
    pytest.fail(f"{len(found)} of {ranks} ranks run after {seconds} s")


def finish(process, seconds):
    """Wait for `process`; fail the test if it takes longer than `seconds`."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun takes its ranks along
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the job still ran after {seconds} s\n{out}\n{err}")
    return Job(process.returncode, out, err, time.monotonic() - began)


def run(ranks, *arguments, seconds=20, **extra):
    """Run Python with `arguments` on `ranks` ranks and return the `Job`."""
    return finish(start(ranks, *arguments, **extra), seconds)
