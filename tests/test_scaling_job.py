"""jobs/scaling.sbatch trains on 1, 2, 4 … nodes and shows what steps took beside a forecast.

`srun` is a stand-in: of a training it writes the log, a forecast it lets run.
"""

import csv
import subprocess
import sys
from pathlib import Path

import mpi_jobs
import pytest
from test_cluster import EXAMPLE

from mpicnn.run.summary import RunSummary, TimeSplit, summary
from mpicnn.settings.definitions import parse

SCRIPT = Path(__file__).parents[1] / "jobs" / "scaling.sbatch"
SECONDS = 60

SRUN = """\
#!/bin/bash
printf '%s\\n' "$@" >> arguments; echo >> arguments
while [[ $1 == -* ]]; do shift; done
if [[ $* != *mpicnn.train* ]]; then exec "$@"; fi
[[ $FAILS ]] && exit "$FAILS"
mkdir -p "$5"; cp log.txt "$5"
"""
SPLITS = [TimeSplit(0.02, 0.1, 0.03), TimeSplit(0.0425, 0.07, 0.0375)]


def run(folder, *arguments, nodes=5, **extra):
    """Run the script as SLURM would; return how it ended and what each srun was given."""
    stub, activate = folder / "bin" / "srun", folder / ".venv" / "bin" / "activate"
    for path, text in (
        (stub, SRUN), (activate, f'PATH="{folder}/bin:{Path(sys.executable).parent}:$PATH"\n'),
    ):  # fmt: skip
        path.parent.mkdir(parents=True)
        path.write_text(text)
    stub.chmod(0o755)
    (folder / "log.txt").write_text(
        f"total 3\n{summary(RunSummary('r', 9, 9, 2, None, SPLITS, []))}\n"
    )
    environ = mpi_jobs.environment(
        SLURM_JOB_ID="17", SLURM_JOB_NUM_NODES=str(nodes), SLURM_NTASKS_PER_NODE="2", **extra
    )
    job = subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)], cwd=folder, env=environ, capture_output=True,
        text=True, timeout=SECONDS,
    )  # fmt: skip
    given = (folder / "arguments").read_text().split("\n\n")
    return job, [words.split("\n") for words in given if words]


def test_trains_on_one_node_two_and_so_on_to_all(tmp_path):
    job, given = run(tmp_path, "--batch", 96, "--", "--epochs", 3)
    assert (job.returncode, job.stderr) == (0, "")
    for words, nodes in zip(given, (1, 2, 4, 5), strict=True):
        assert {f"--nodes={nodes}", f"--ntasks={2 * nodes}"} <= set(words)
        found = parse(words[words.index("mpicnn.train") + 1 :], "train", {})
        assert (found.batch, found.epochs, found.device) == (96, 3, "cpu")
        assert found.run_dir == f"runs/17-scaling-{nodes}"
    rows = list(csv.DictReader((tmp_path / "runs/17-scaling.csv").open()))
    assert [row.pop("nodes") for row in rows] == ["1", "2", "4", "5"]
    # the rank that computes longest
    expected = {"step_s": 0.15, "convolution_s": 0.1, "communication_s": 0.02, "other_s": 0.03}
    for row in rows:
        assert {name: float(text) for name, text in row.items()} == expected
    assert job.stdout.endswith((tmp_path / "runs/17-scaling.csv").read_text())


@pytest.mark.limit(2 * SECONDS)
def test_what_was_measured_stands_beside_the_forecast(tmp_path):
    job, given = run(tmp_path, EXAMPLE, "--batch", 96, "--", "--crop", 24, nodes=2)
    assert (job.returncode, job.stderr) == (0, "")
    assert "--crop" in given[0] and "--crop" not in given[-1], "what is for training alone"
    table = job.stdout[job.stdout.index("alexnet-cifar (1x28x28, 10 classes) under plan data") :]
    head, _, *rows = table.splitlines()[3:7]
    assert head.split()[-3:] == ["measured,", "s", "off"]
    assert [(row.split()[0], row.split()[-3]) for row in rows] == [("1", "0.15"), ("2", "0.15")]
    assert (tmp_path / "runs/17-scaling-forecast.csv").exists()


def test_a_training_that_fails_ends_the_job(tmp_path):
    job, given = run(tmp_path, FAILS="2")
    assert job.returncode == 2 and len(given) == 1
