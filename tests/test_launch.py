"""However a rank fails, the job ends: soon, with a code, and with one message naming the rank."""

import os
import signal
import textwrap

import mpi_jobs
import pytest

from mpicnn.errors import DeviceError, UserError
from mpicnn.job import launcher
from mpicnn.job.agreement import agree, broadcast_text, same
from mpicnn.job.output import say
from mpicnn.job.signals import Signals

SECONDS = 20  # a job of 3 ranks takes about 1 s, with the grace period 3 s; the machine may be busy
BEGIN = "sys.stdout.write(f'begun {comm.rank}\\n')\n"
BLOCKED = "comm.Barrier()"

# name: (main's body, exit code or None for any but 0, lines expected on stderr, exactly once each)
FAULTS = {
    "exception": (
        f"if comm.rank == 1: raise ValueError('odd shape')\n{BLOCKED}",
        1,
        ["[rank 1] Traceback (most recent call last):", "[rank 1] ValueError: odd shape"],
    ),
    "exception before anything is sent": (
        f"if comm.rank == 2: import no_such_module\n{BLOCKED}",
        1,
        ["[rank 2] ModuleNotFoundError: No module named 'no_such_module'"],
    ),
    "exception in a thread": (
        "import threading\n"
        "if comm.rank == 1: threading.Thread(target=lambda: 1 / 0).start()\n"
        f"if comm.rank == 1: import time; time.sleep(60)\n{BLOCKED}",
        1,
        ["[rank 1] ZeroDivisionError: division by zero"],
    ),
    "user error in a thread": (
        "import threading\n"
        "def fail(): raise UserError('no such file')\n"
        f"if comm.rank == 1: threading.Thread(target=fail).start()\n{BLOCKED}",
        2,
        ["[rank 1] mpicnn: error: no such file"],
    ),
    "exit 3": (
        f"if comm.rank == 1: sys.exit(3)\n{BLOCKED}",
        3,
        ["[rank 1] mpicnn: error: left with exit code 3 while other ranks were still at work"],
    ),
    "exit 0": (
        f"if comm.rank == 1: sys.exit(0)\n{BLOCKED}",
        1,
        ["[rank 1] mpicnn: error: left with exit code 0 while other ranks were still at work"],
    ),
    "no memory while others are at work": (
        f"if comm.rank == 1: import numpy; numpy.empty(2**57)\n{BLOCKED}",
        2,
        [
            "[rank 1] mpicnn: error: not enough memory: Unable to allocate 1.00 EiB for an array "
            "with shape (144115188075855872,) and data type float64; use a smaller batch or "
            "network, or more ranks"
        ],
    ),
    "exit with a message": (
        "sys.exit('enough')",
        1,
        ["mpicnn: error: enough"],
    ),
    "killed": (
        f"if comm.rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n{BLOCKED}",
        None,
        [],
    ),
    "user error while others are at work": (
        f"if comm.rank == 1: raise UserError('no such file')\n{BLOCKED}",
        2,
        ["[rank 1] mpicnn: error: no such file"],
    ),
    "user error on one rank at the end": (
        "if comm.rank == 1: raise UserError('no such file')",
        2,
        ["mpicnn: error: rank 1: no such file"],
    ),
    "user error on all ranks": (
        "raise UserError('no such file')",
        2,
        ["mpicnn: error: no such file"],
    ),
    "user error on all ranks, each its own": (
        "raise UserError(f'no file {comm.rank}')",
        2,
        ["mpicnn: error: rank 0: no file 0"],
    ),
    "agreed user error": (
        "def load():\n"
        "    if comm.rank == 2: raise DeviceError('no GPU')\n"
        f"agree(comm, load)\n{BLOCKED}",
        69,
        ["mpicnn: error: rank 2: no GPU"],
    ),
    "code returned by one rank": ("return 7 if comm.rank == 2 else 0", 7, []),
    "interrupt on all ranks": ("raise KeyboardInterrupt", 130, []),
}

HEADER = """\
from mpicnn.job.agreement import agree
from mpicnn.job.launch import launch
from mpicnn.job.output import say
from mpicnn.job.signals import Signals
import os, signal, sys, time
from mpicnn.errors import DeviceError, UserError

def main(comm):
"""


def program(folder, body):
    path = folder / "job.py"
    path.write_text(HEADER + textwrap.indent(body, "    ") + "\n\nlaunch(main)\n")
    return path


def own_lines(err):
    """Lines that our code wrote: launchers and MPI libraries add reports of their own."""
    return [line for line in err.splitlines() if line.startswith(("[rank ", "mpicnn:", "Trace"))]


@pytest.mark.limit(60)
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_the_job(tmp_path, fault):
    body, code, expected = FAULTS[fault]
    job = mpi_jobs.run(3, program(tmp_path, BEGIN + body), seconds=SECONDS)
    assert job.code == code if code is not None else job.code != 0
    lines = own_lines(job.err)
    for line in expected:
        assert lines.count(line) == 1, job.err
    if not any("Traceback" in line for line in lines):
        assert len(lines) == len(expected), job.err
    for line in expected:
        if line.startswith("[rank "):
            assert f"begun{line[5:7]}\n" in job.out, "what the rank had printed was lost"


def test_ranks_may_finish_at_different_times(tmp_path):
    # Longer than the grace period of a rank that fails.
    job = mpi_jobs.run(2, program(tmp_path, "if comm.rank == 0: time.sleep(3)\nprint('done')"))
    assert (job.code, job.out.count("done"), own_lines(job.err)) == (0, 2, [])


def test_signal_to_mpirun_is_noted_on_every_rank(tmp_path):
    body = """\
with Signals() as stop:
    say(None, "ready", 1)
    while not stop.requested:
        time.sleep(0.01)
say(comm.rank, stop.requested, 1)
"""
    process = mpi_jobs.start(3, program(tmp_path, body))
    for _ in range(3):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    job = mpi_jobs.finish(process, SECONDS)
    assert job.code == 0, job.err
    assert sorted(job.out.splitlines()) == [f"[rank {r}] SIGUSR1" for r in range(3)]


def test_interrupt_of_mpirun_ends_quietly(tmp_path):
    # Rank 0 has finished and waits for the others.
    body = "say(None, 'ready', 1)\nwhile comm.rank: time.sleep(0.01)"
    process = mpi_jobs.start(3, program(tmp_path, body))
    for _ in range(3):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    job = mpi_jobs.finish(process, SECONDS)
    assert job.code != 0
    assert "Traceback" not in job.err


def test_launcher_of_another_mpi_is_refused(tmp_path):
    job = mpi_jobs.run(0, program(tmp_path, "print('ran')"), PMI_SIZE="4")
    assert (job.code, job.out) == (2, "")
    assert job.err.startswith("mpicnn: error: the launcher started 4 processes, but mpi4py's lib")
    assert job.err.count("\n") == 1


def test_srun_without_an_mpi_plugin_is_refused(tmp_path):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    job = mpi_jobs.run(0, program(tmp_path, "print('ran')"), **step)
    assert (job.code, job.out) == (2, "")
    assert job.err.startswith("mpicnn: error: srun started 2 processes, but mpi4py's library (")
    assert "mpirun" not in job.err and job.err.count("\n") == 1
    alone = mpi_jobs.run(
        0, program(tmp_path, "print('ran')"), **step | {"SLURM_STEP_NUM_TASKS": "1"}
    )
    assert (alone.code, alone.out) == (0, "ran\n")


def test_only_one_process_reports_another_mpi(tmp_path):
    job = mpi_jobs.run(0, program(tmp_path, "print('ran')"), PMI_SIZE="4", PMI_RANK="1")
    assert (job.code, job.out, job.err) == (2, "", "")


def test_one_process_needs_no_launcher(tmp_path):
    job = mpi_jobs.run(0, program(tmp_path, "print(comm.size)"))
    assert (job.code, job.out, job.err) == (0, "1\n", "")
    job = mpi_jobs.run(0, program(tmp_path, "raise UserError('no such file')"))
    assert (job.code, job.out, job.err) == (2, "", "mpicnn: error: no such file\n")
    job = mpi_jobs.run(0, program(tmp_path, "raise ValueError('odd shape')"))
    assert job.code == 1
    assert job.err.startswith("Traceback") and job.err.endswith("ValueError: odd shape\n")


def test_reader_of_stdout_may_leave(tmp_path):
    process = mpi_jobs.start(0, program(tmp_path, "while True: print('line')"))
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(SECONDS) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_other_broken_pipes_are_errors(tmp_path):
    body = "ends = os.pipe()\nos.close(ends[0])\nos.write(ends[1], b'x')"
    job = mpi_jobs.run(0, program(tmp_path, body))
    assert job.code == 1
    assert "BrokenPipeError" in job.err


@pytest.mark.parametrize("environ, size_and_rank", [
    ({}, (None, 0)),
    ({"PMI_SIZE": "8", "PMI_RANK": "3"}, (8, 3)),
    ({"OMPI_COMM_WORLD_SIZE": "5"}, (5, 0)),
    ({"PMI_SIZE": ""}, (None, 0)),
    ({"SLURM_NTASKS": "4"}, (None, 0)),
])  # fmt: skip
def test_what_launchers_tell(environ, size_and_rank):
    assert launcher.size_and_rank(environ) == size_and_rank


STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_MPI_TYPE": "none"}
HYDRA = {"MPI_LOCALNRANKS": "2", "PMI_SIZE": "4"}  # which itself starts by srun within a job


@pytest.mark.parametrize("environ, library, message", [
    (STEP, "MPICH Version: 5.0.2", "srun --mpi=none started 4 processes, but mpi4py's library "
     "(MPICH Version: 5.0.2) sees 1: that library needs srun --mpi=pmi2; srun --mpi=list shows"),
    (STEP, "Open MPI v5.0.11", "that library needs srun --mpi=pmix; srun --mpi=list"),
    (STEP | HYDRA, "Open MPI v5.0.11", "use that library's own mpirun"),
    ({}, "MPICH Version: 5.0.2", "use that library's own mpirun"),
])  # fmt: skip
def test_the_launcher_that_was_used_is_spoken_of(environ, library, message):
    assert message in launcher.mismatch(environ, library, 4, 1)


def test_commands_start_ranks_as_these_were_started():
    assert launcher.command(STEP, "MPICH 5.0.2", 4) == "srun --mpi=pmi2 -n 4"
    assert launcher.command(STEP | HYDRA, "MPICH 5.0.2", 4) == "mpirun -n 4"
    assert launcher.command({}, "MPICH 5.0.2", 4) == "mpirun -n 4"
    assert launcher.command({}, "MPICH 5.0.2", 1) == ""


def fail_on(rank, failing, kind=UserError):
    if rank in failing:
        raise kind(f"file {rank} is missing")
    return rank


def test_agree_returns_each_ranks_own_result(subcomms):
    assert agree(subcomms, fail_on, subcomms.rank, failing=()) == subcomms.rank


def test_agree_raises_the_lowest_failure_on_all(subcomms):
    last = subcomms.size - 1
    with pytest.raises(UserError) as caught:
        agree(subcomms, fail_on, subcomms.rank, {last, last + 1}, DeviceError)
    mark = f"rank {last}: " if subcomms.size > 1 else ""
    assert str(caught.value) == f"{mark}file {last} is missing"
    assert caught.value.code == DeviceError.code


def test_agree_names_no_rank_where_all_say_the_same(subcomms):
    with pytest.raises(UserError, match=r"^file 0 is missing: \u00fc$"):
        agree(subcomms, refuse, "file 0 is missing: \u00fc")


def refuse(text):
    raise UserError(text)


def test_agree_leaves_other_exceptions_alone(comm):
    # Were it exchanged, the ranks would hang here: nobody else takes part.
    with pytest.raises(ZeroDivisionError):
        agree(comm, lambda: 1 // 0)


def test_same(subcomms):
    same(subcomms, "the plan", b"equal")
    last = subcomms.size - 1
    if last:
        with pytest.raises(
            UserError, match=rf"^the plan differs .* rank 0 and rank\(s\) {last} of"
        ):
            same(subcomms, "the plan", b"odd" if subcomms.rank == last else b"equal")


@pytest.mark.parametrize("text", ["", "one line", "n\u00e4chste\n" * 10_000, "\udcff.h5"])
def test_broadcast_text(subcomms, text):
    assert broadcast_text(subcomms, text if subcomms.rank == 0 else None) == text


def test_say_marks_every_line():
    reader, writer = os.pipe()
    say(3, "one\ntwo", writer)
    say(None, "three", writer)
    os.close(writer)
    with os.fdopen(reader) as read:
        assert read.read() == "[rank 3] one\n[rank 3] two\nthree\n"


@pytest.mark.parametrize("first", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_are_noted_and_handlers_put_back(first):
    before = signal.getsignal(first), signal.getsignal(signal.SIGINT)
    with Signals() as stop:
        assert stop.requested is None
        signal.raise_signal(first)
        assert stop.requested == first.name
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(first), signal.getsignal(signal.SIGINT)) == before
