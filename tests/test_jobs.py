"""The SLURM scripts pass signals and exit codes on, requeue what was cut, and ask for what exists.

Each script runs as SLURM would run it, with stand-ins for `srun` and `scontrol`. On a real SLURM
they run in test_slurm.py.
"""

import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import mpi_jobs
import pytest

from mpicnn.commands.train import STOPPED
from mpicnn.settings.definitions import parse

JOBS = Path(__file__).parents[1] / "jobs"
SCALING = JOBS / "scaling.sbatch"  # trains several times, see test_scaling_job.py
SCRIPTS = sorted(set(JOBS.glob("*.sbatch")) - {SCALING})
DEVICES = {"cpu.sbatch": "cpu", "gpu.sbatch": "gpu", "mixed.sbatch": "auto"}
SECONDS = 20  # a script runs for about 0.1 s; the machine may be busy

# Leaves with CODE: at once, or with WAITS after SIGUSR1, when there is a file called saved; with
# DEAF after the second SIGUSR1.
SRUN = """\
#!/bin/bash
printf '%s\\n' "$@" > arguments
warned() {
    echo USR1 >> signals
    if [[ $DEAF && $(wc -l < signals) == 1 ]]; then return; fi
    until [[ -e saved ]]; do sleep 0.02; done
    exit "$CODE"
}
trap warned USR1
echo started
[[ $WAITS ]] || exit "$CODE"
for _ in {1..1000}; do sleep 0.02; done
"""
SCONTROL = """\
#!/bin/bash
echo "$*" >> scontrol
exit "$REFUSED"
"""

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
# SLURM has no arrays of heterogeneous jobs.
each_array = pytest.mark.parametrize("script", SCRIPTS[:2], ids=lambda path: path.name)


def start(script, folder, *arguments, code=0, waits="", refused=0, **extra):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        stub = folder / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(text)
        stub.chmod(0o755)
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'PATH="{folder}/bin:$PATH"\n')
    environ = mpi_jobs.environment(
        SLURM_JOB_ID="17",
        SLURM_CPUS_PER_TASK="16",
        SLURM_CPUS_PER_TASK_HET_GROUP_0="16",
        SLURM_CPUS_PER_TASK_HET_GROUP_1="8",
        CODE=str(code),
        WAITS=waits,
        REFUSED=str(refused),
        warned="yes",  # as one of the user's own might be called, which sbatch passes on
        **extra,
    )
    return subprocess.Popen(
        ["bash", script, *arguments],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def commands(folder):
    """What follows `python -m mpicnn.train` in the command, or in each part of it."""
    found, words = [], lines(folder / "arguments")
    while "mpicnn.train" in words:
        words = words[words.index("mpicnn.train") + 1 :]
        end = words.index(":") if ":" in words else len(words)
        found.append(words[:end])
    return found


def test_every_script_is_tested():
    assert {script.name for script in SCRIPTS} == DEVICES.keys()


@pytest.mark.parametrize("script", [*SCRIPTS, SCALING], ids=lambda path: path.name)
def test_is_bash(script):
    checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", [*SCRIPTS, SCALING], ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck on PATH")
    # SC1091: what is sourced is the user's.
    checked = subprocess.run(["shellcheck", "-e", "SC1091", script], capture_output=True, text=True)
    assert checked.stdout == ""


@each_script
def test_slurm_sees_all_that_is_asked_for(script):
    text = script.read_text().splitlines()
    asked = [number for number, line in enumerate(text) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(text) if line and line[0] != "#"]
    assert max(asked) < min(commands), "SLURM reads up to the first command"
    options = " ".join(text[number] for number in asked)
    for needed in ("--signal=B:USR1@", "--requeue", "--open-mode=append", "--time="):
        assert needed in options


@each_script
def test_command_is_understood(script, tmp_path):
    (tmp_path / "my.toml").write_text("epochs = 2\nbatch = 96\n")
    job = mpi_jobs.finish(start(script, tmp_path, "my.toml", "--epochs", "3"), SECONDS)
    assert job.code == 0, job.err
    found = [settings(words, tmp_path) for words in commands(tmp_path)]
    assert found and all(each == found[0] for each in found)
    assert (found[0].epochs, found[0].batch) == (3, 96)
    assert (found[0].run_dir, found[0].resume) == ("runs/17", True)
    assert found[0].device == DEVICES[script.name]
    assert found[0].threads == 0, "what SLURM gave each task is the default"
    if script.name == "mixed.sbatch":
        assert (found[0].calibration, found[0].recalibrate) == ("mpicnn-17.json", True)


OWN = {
    "--run-dir": "mine", "--device": "gpu:3", "--threads": "5", "--shares": "2,1",
    "--calibration": "other.json",
}  # fmt: skip


@each_script
def test_options_of_the_user_hold(script, tmp_path):
    own = [word for pair in OWN.items() for word in pair]
    mpi_jobs.finish(start(script, tmp_path, *own, "--no-resume", "--no-recalibrate"), SECONDS)
    for words in commands(tmp_path):
        found = settings(words, tmp_path)
        for name, value in OWN.items():
            assert str(getattr(found, name.lstrip("-").replace("-", "_"))) == value
        assert not found.resume and not found.recalibrate


@each_script
def test_the_log_begins_with_the_command(script, tmp_path):
    job = mpi_jobs.finish(start(script, tmp_path, "--data", "my data.h5"), SECONDS)
    command = shlex.split(job.out.splitlines()[0])
    assert command == ["srun", *lines(tmp_path / "arguments")]


TASK = {"SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "4"}


@each_array
def test_a_task_of_an_array_has_a_directory_and_settings_of_its_own(script, tmp_path):
    (tmp_path / "my-4.toml").write_text("batch = 96\n")
    options = ("my-%a.toml", "--seed", "%a", "--rate=0.%a", "--data", "50%.h5")
    (tmp_path / "saved").touch()
    process = start(script, tmp_path, *options, code=STOPPED, waits="yes", **TASK)
    warn(process)
    assert mpi_jobs.finish(process, SECONDS).code == STOPPED
    found = settings(*commands(tmp_path), tmp_path)
    assert (found.seed, found.batch, found.rate, found.data) == (4, 96, 0.4, "50%.h5")
    assert found.run_dir == "runs/16_4"
    assert lines(tmp_path / "scontrol") == ["requeue 16_4"], "alone, without the other tasks"


def settings(words, folder):
    """What the options ask for; the file of settings, if any, lies in `folder`."""
    found = [str(folder / word) if word.endswith(".toml") else word for word in words]
    return parse(found, "train", {})


def test_all_parts_of_a_mixed_job_run(tmp_path):
    mpi_jobs.finish(start(JOBS / "mixed.sbatch", tmp_path), SECONDS)
    words = lines(tmp_path / "arguments")
    assert len(commands(tmp_path)) == 2
    for group, cores in ((0, 16), (1, 8)):
        at = words.index(f"--het-group={group}")
        assert words[at + 1] == f"--cpus-per-task={cores}"


@each_script
@pytest.mark.parametrize("code", [0, 1, 2, 69, STOPPED, 137])
def test_code_is_passed_on(script, code, tmp_path):
    job = mpi_jobs.finish(start(script, tmp_path, code=code), SECONDS)
    assert (job.code, job.err) == (code, "")
    assert lines(tmp_path / "scontrol") == [], "requeued without having been warned"


@each_script
def test_code_of_a_job_that_fails_at_once_is_passed_on(script, tmp_path):
    # The script looks whether the job still runs when that is long over.
    late = {"BASH_FUNC_kill%%": '() { sleep 0.3; builtin kill "$@"; }'}
    assert mpi_jobs.finish(start(script, tmp_path, code=2, **late), SECONDS).code == 2


def warn(process):
    """Send what SLURM sends before the time is up, once the job runs."""
    assert process.stdout.readline().startswith("srun --mpi=pmi2 ")
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGUSR1)


@each_script
@pytest.mark.parametrize(
    "code, calls",
    [
        (STOPPED, ["requeue 17"]),
        (138, ["requeue 17"]),
        (10, ["requeue 17"]),
        (0, []),
        (1, []),
        (143, []),
    ],
)
def test_what_the_time_limit_cuts_is_requeued(script, code, calls, tmp_path):
    (tmp_path / "saved").touch()
    process = start(script, tmp_path, code=code, waits="yes")
    warn(process)
    job = mpi_jobs.finish(process, SECONDS)
    assert (job.code, job.err) == (code, "")
    assert set(lines(tmp_path / "signals")) == {"USR1"}
    assert lines(tmp_path / "scontrol") == calls


@each_script
def test_a_second_warning_does_not_cut_the_saving_short(script, tmp_path):
    process = start(script, tmp_path, code=STOPPED, waits="yes")
    warn(process)
    end = time.monotonic() + SECONDS
    while not (tmp_path / "signals").exists() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)  # enough for a script that does not wait to be gone
    (tmp_path / "saved").touch()
    job = mpi_jobs.finish(process, SECONDS)
    assert (job.code, job.err) == (STOPPED, "")
    assert lines(tmp_path / "scontrol") == ["requeue 17"]


@each_script
def test_a_warning_that_comes_to_nothing_is_repeated(script, tmp_path):
    (tmp_path / "saved").touch()
    process = start(script, tmp_path, code=STOPPED, waits="yes", DEAF="yes")
    warn(process)
    assert mpi_jobs.finish(process, SECONDS).code == STOPPED
    assert lines(tmp_path / "signals") == ["USR1", "USR1"]
    assert lines(tmp_path / "scontrol") == ["requeue 17"]


@each_script
def test_a_refused_requeue_leaves_the_code(script, tmp_path):
    (tmp_path / "saved").touch()
    process = start(script, tmp_path, code=STOPPED, waits="yes", refused=1)
    warn(process)
    assert mpi_jobs.finish(process, SECONDS).code == STOPPED
    assert lines(tmp_path / "scontrol") == ["requeue 17"]


@each_script
def test_nothing_runs_without_the_environment(script, tmp_path):
    job = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True)
    assert job.returncode == 1
    assert ".venv/bin/activate" in job.stderr and job.stderr.count("\n") == 1
