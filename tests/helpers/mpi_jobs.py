"""Start small jobs of several ranks from within a test, itself under a launcher or not."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
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
    return subprocess.Popen(
        [*launcher, sys.executable, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
        start_new_session=True,
    )


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
