"""Do to mpicnn what happens to it: kills, full disks, damage, absurd input; count what it survives.

Every fault is drawn from its number, so that `--seed N --count 1` does one again. A fault is
survived if what follows is right: a killed, stopped or damaged run goes on to the very weights of
a run that nothing happened to, and input is accepted or refused in one line, in time.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))

import fuzz_files
import mpi_jobs
import random_cases

from mpicnn.checkpoint import read_tensors
from mpicnn.errors import UserError

SECONDS = 120
STEPS = 157
TRAIN = ("-m", "mpicnn.train", "--batch", 16, "--epochs", 0.25, "--checkpoint-every", 0.02,
         "--keep", 3, "--evaluate-every", 0.25, "--precision", "float64", "--threads", 1,
         "--progress", "off")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a fault happens: a scratch folder, and the weights of a run without faults."""

    folder: Path
    weights: dict[str, np.ndarray]


def plan(draw: random.Random, place: Place) -> None:
    """Train under a random plan, against one rank."""
    random_cases.compare_with_one_rank(random_cases.draw(draw.randrange(10**9)))


def graph(draw: random.Random, place: Place) -> None:
    """Train a network with skips and branches under a random plan, against one rank."""
    random_cases.compare_with_one_rank(random_cases.draw(draw.randrange(10**9), graph=True))


def parser(kind: str) -> Callable[[random.Random, Place], None]:
    """Return a fault: an input of that kind that is nearly right."""

    def read(draw: random.Random, place: Place) -> None:
        seed = draw.randrange(10**9)
        list(fuzz_files.refused(kind, range(seed, seed + 1), place.folder))

    return read


def killed(draw: random.Random, place: Place) -> None:
    """Kill a job at any moment, twice, and let it go on."""
    run = place.folder / "run"
    for _ in range(2):
        job = mpi_jobs.start(2, *TRAIN, "--run-dir", run, "--resume")
        time.sleep(draw.uniform(0.2, 2.5))
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate(timeout=SECONDS)
        assert job.returncode in (0, -signal.SIGKILL)
        time.sleep(0.2)  # the launcher's helpers see that it is gone, and end the ranks
    complete(run, place)


def signalled(draw: random.Random, place: Place) -> None:
    """Ask a job to stop at any moment, and let it go on."""
    run = place.folder / "run"
    number = draw.choice([signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
    job = mpi_jobs.start(2, *TRAIN, "--run-dir", run)
    time.sleep(draw.uniform(0.3, 3))
    job.send_signal(number)
    ended = mpi_jobs.finish(job, SECONDS)
    early = (number, -number)  # of mpirun, which the signal reached before Python started
    assert ended.code in (0, 75, *early), f"code {ended.code}: {ended.err}"
    assert ended.code in early or (run / "checkpoints").is_dir(), "nothing was saved"
    complete(run, place)


def stalled(draw: random.Random, place: Place) -> None:
    """Stop a rank at any moment; it is named, and goes on, or the job is ended and resumed."""
    run = place.folder / "run"
    job = mpi_jobs.start(2, *TRAIN, "--run-dir", run, "--stall-warning", 1, "--stall-abort", 8)
    rank = draw.randrange(2)
    process = mpi_jobs.processes(job, 2)[rank]
    time.sleep(draw.uniform(1, 2.5))
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)
        time.sleep(6)
        match draw.randrange(3):
            case 0:
                os.kill(process, signal.SIGCONT)
            case 1:
                job.send_signal(signal.SIGINT)
    ended = mpi_jobs.finish(job, SECONDS)
    assert ended.code in (0, 1, 75, 130), f"code {ended.code}: {ended.err}"
    early = "waits at start" in ended.err  # hosts are not known yet
    named = f"rank {rank}{'' if early else ' on'} " in ended.err and "does not answer" in ended.err
    named = named or "Timeout" in ended.err  # of MPI's own start
    assert ended.code == 0 or named, f"not named: {ended.err}"
    complete(run, place)


def damaged(draw: random.Random, place: Place) -> None:
    """Damage the newest checkpoint: a bit, a block of zeros, or its end; let the run go on."""
    run = place.folder / "run"
    job = mpi_jobs.run(2, *TRAIN, "--run-dir", run, "--epochs", 0.12, seconds=SECONDS)
    assert job.code == 0, job.err
    newest = max((run / "checkpoints").iterdir())
    data = bytearray(newest.read_bytes())
    at = draw.randrange(len(data))
    match draw.randrange(3):
        case 0:
            data[at] ^= 1 << draw.randrange(8)
        case 1:
            data[at : at + 512] = bytes(len(data[at : at + 512]))
        case _:
            del data[at:]
    newest.write_bytes(data)
    complete(run, place)


def full_disk(draw: random.Random, place: Place) -> None:
    """Let the disk get full under a run, make room, and let it go on.

    The disk is a small one in memory, where that may be mounted; or no file may grow beyond a limit
    from some moment on.
    """
    run = place.folder / "disk" / "run"
    run.parent.mkdir()
    room = draw.randrange(8_000_000)
    with small_disk(run.parent, room) if draw.random() < 0.5 else unlimited() as mounted:
        job = mpi_jobs.start(2, *TRAIN, "--run-dir", run)
        while not mounted and job.poll() is None and not (run / "log.txt").exists():
            time.sleep(0.01)
        with suppress(OSError):  # it may have ended by now
            for pid in () if mounted else descendants(job.pid):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (room // 4, resource.RLIM_INFINITY))
        ended = mpi_jobs.finish(job, SECONDS)
        assert ended.code in (0, 2), f"code {ended.code}: {ended.err}"
        assert ended.code == 0 or ended.err.splitlines()[-1].startswith("mpicnn: error: ")
        assert "Traceback" not in ended.err, ended.err
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=1g", run.parent], check=True)
        complete(run, place)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """Mount a disk of so many bytes; give whether that was possible."""
    how = ["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "none", str(folder)]
    mounted = subprocess.run(how, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def unlimited() -> Iterator[bool]:
    """Leave the disk as it is."""
    yield False


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that it and its children have started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from descendants(int(child))


def complete(run: Path, place: Place) -> None:
    """Resume a run to its end; its weights must be those of a run that nothing happened to."""
    job = mpi_jobs.run(2, *TRAIN, "--run-dir", run, "--resume", seconds=SECONDS)
    assert job.code == 0, f"code {job.code}: {job.err}"
    for name, array in read_tensors(run / "checkpoints" / f"step-{STEPS:08d}.h5").items():
        expected = place.weights[name]
        error = np.linalg.norm(array - expected) / max(np.linalg.norm(expected), 1e-300)
        assert error < 1e-12, f"{name}: {error:.1e} from the run without faults"


FAULTS: dict[str, tuple[float, Callable[[random.Random, Place], None]]] = {
    "random plans": (1, plan),
    "random plans of graphs": (1, graph),
    **{f"{kind} files": (5, parser(kind)) for kind in fuzz_files.PARSERS},
    "kill -9, twice": (0.05, killed),
    "USR1, TERM, Ctrl-C": (0.05, signalled),
    "stopped ranks": (0.05, stalled),
    "damaged checkpoints": (0.05, damaged),
    "full disk": (0.05, full_disk),
}
"""How many of each family there are for each of `--count`, and what is done."""
TRAINING = {
    "kill -9, twice", "USR1, TERM, Ctrl-C", "stopped ranks", "damaged checkpoints", "full disk",
}  # fmt: skip


def main() -> int:
    """Print a line per family: tried, survived, and the numbers of those that were not."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--count", type=int, default=200, help="of random plans; others follow")
    options.add_argument("--seed", type=int, default=0, help="of the first fault")
    options.add_argument("--only", choices=FAULTS, action="append", help="families [all]")
    asked = options.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        names = asked.only or list(FAULTS)
        weights = whole(Path(scratch)) if TRAINING & set(names) else {}
        print(f"{'family':<22}{'tried':>8}{'survived':>10}{'s':>8}", flush=True)
        for name in names:
            share, _ = FAULTS[name]
            seeds = range(asked.seed, asked.seed + max(1, int(asked.count * share)))
            failed += family(name, seeds, Path(scratch), weights)
    return 1 if failed else 0


def whole(scratch: Path) -> dict[str, np.ndarray]:
    """Return the weights of a run that nothing happens to."""
    job = mpi_jobs.run(2, *TRAIN, "--run-dir", scratch / "whole", seconds=SECONDS)
    assert job.code == 0, job.err
    return read_tensors(scratch / "whole" / "checkpoints" / f"step-{STEPS:08d}.h5")


def family(name: str, seeds: range, scratch: Path, weights: dict[str, np.ndarray]) -> int:
    """Do the faults of a family and print how they went; return how many were not survived."""
    _, fault = FAULTS[name]
    since, lost = time.perf_counter(), []
    for seed in seeds:
        folder = scratch / "fault"
        folder.mkdir()
        try:
            fault(random.Random(f"{name} {seed}"), Place(folder, weights))
        except UserError as error:
            lost.append(f"  {name}, --seed {seed}: UserError: {error}")
        except (Exception, pytest.fail.Exception) as error:
            said = " ".join(str(error).split())[:300]
            lost.append(f"  {name}, --seed {seed}: {type(error).__name__}: {said}")
        shutil.rmtree(folder)
    seconds = time.perf_counter() - since
    print(f"{name:<22}{len(seeds):>8}{len(seeds) - len(lost):>10}{seconds:>8.0f}", flush=True)
    for line in lost:
        print(line)
    return len(lost)


if __name__ == "__main__":
    sys.exit(main())
