"""The scripts in `jobs/` on a real SLURM, where it is installed: five nodes on this machine.

All jobs are submitted at once, and what is to happen to them happens; each test waits for its own.
The first go of those that are to be cut is slow, and only that.
"""

import json
import re
import sys
import time
from pathlib import Path

import data_samples
import mpi_jobs
import numpy as np
import pytest
import slurm_cluster
from mpi4py import MPI

from mpicnn.checkpoint import read_tensors

JOBS = Path(__file__).parents[1] / "jobs"
SECONDS = 120  # the last job has ended after 40 s; the machine may be busy
ONE = ("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=1")
TWO = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1")
REST = ("--exclude=node[4-5]",)  # of which one will fail
STEPS = 300

NETWORK = """\
import os
import time

from mpicnn.layers import Conv, Flatten, Linear, ReLU

SLOW = "SLOW" in os.environ and "SLURM_RESTART_COUNT" not in os.environ
SLOW = SLOW and os.environ.get("SLURM_ARRAY_TASK_ID") != "3"


class Slow(ReLU):
    def forward(self, ops, x, p, ctx):
        if SLOW:
            time.sleep(0.25)
        return super().forward(ops, x, p, ctx)


def model(input_shape, classes):
    return [
        ("conv1", Conv(4, 3)), ("relu1", Slow()), ("flatten", Flatten()), ("fc2", Linear(classes)),
    ]
"""

pytestmark = [pytest.mark.together, pytest.mark.limit(2 * SECONDS)]


@pytest.fixture(scope="module")
def cluster():
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    if "MPICH" not in MPI.Get_library_version():
        pytest.skip("the scripts as they stand are for MPICH")
    with slurm_cluster.Cluster() as made:
        yield made


class Submitted:
    """A job, and where it runs."""

    def __init__(self, cluster, folder, *command, slow=False):
        self.cluster, self.folder = cluster, folder
        activate = folder / ".venv" / "bin" / "activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(f'PATH="{Path(sys.executable).parent}:$PATH"\n')
        environ = mpi_jobs.environment(**{"SLOW": "yes"} if slow else {})
        told = cluster.run("sbatch", "--parsable", *command, cwd=folder, env=environ)
        self.number = told.strip()

    @property
    def log(self):
        return "\n".join(path.read_text() for path in self.folder.glob("mpicnn-*.log"))

    def state(self, number=""):
        return self.cluster.show(number or self.number)

    def until(self, true):
        end = time.monotonic() + SECONDS
        while not true():
            if time.monotonic() > end or self.state()["JobState"] in ("FAILED", "CANCELLED"):
                pytest.fail(f"job {self.state()}\n{self.log}\n{self.cluster.logs()}")
            time.sleep(0.2)

    def saved(self, run="*"):
        """Wait for a checkpoint."""
        self.until(lambda: list(self.folder.glob(f"runs/{run}/checkpoints/*.h5")))

    def ended(self, number=""):
        """Wait for a good end, and return what SLURM says of the job.

        A job that is about to be requeued has ended for a moment, with another code.
        """
        found = {}

        def done():
            found.update(self.state(number))
            return (found["JobState"], found["ExitCode"]) == ("COMPLETED", "0:0")

        self.until(done)
        return found

    def weights(self, run=""):
        return read_tensors(
            self.folder / (run or f"runs/{self.number}") / f"checkpoints/step-{STEPS:08}.h5"
        )


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    data = data_samples.sample(folder / "small.h5", train=37, test=11, shape=(1, 12, 12)).path
    (folder / "net.py").write_text(NETWORK)
    (folder / "my.toml").write_text(
        f'model = "{folder}/net.py"\ndata = "{data}"\nbatch = 8\nprecision = "float64"\n'
        "epochs = 60\nevaluate-every = 0\ncheckpoint-every = 5\nseed = 7\n"
    )
    measured = ("--shares", "measured", "--calibration", "speeds.json", "--recalibrate")
    made = {}

    def submit(name, script, *options, after=(), slow=False):
        (folder / name).mkdir()
        command = (*options, JOBS / script, folder / "my.toml", *after)
        made[name] = Submitted(cluster, folder / name, *command, slow=slow)

    submit("limit", "cpu.sbatch", "--time=1", "--signal=B:USR1@55", *TWO, slow=True)
    submit("failure", "cpu.sbatch", "--exclude=node[1-3]", *ONE, after=measured, slow=True)
    submit("mixed", "mixed.sbatch", *REST, *ONE, ":", *ONE, "--gpus-per-node=1", slow=True)
    submit("requeue", "cpu.sbatch", *REST, *ONE, slow=True)
    submit("plain", "cpu.sbatch", *REST, *TWO)
    submit("array", "cpu.sbatch", *REST, "--array=3-4", *ONE, after=("--seed", "%a"), slow=True)
    options = ("--device", "cpu", "--run-dir", "mine")
    submit("gpu", "gpu.sbatch", *ONE, "--gpus-per-node=1", after=options)

    made["mixed"].saved()
    cluster.run("scancel", "--batch", "--signal=USR1", made["mixed"].number)
    array = made["array"]
    array.saved(f"{array.number}_4")
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array.number}_4")
    made["requeue"].saved()
    cluster.run("scontrol", "requeue", made["requeue"].number)
    made["failure"].saved()
    made["failing node"] = made["failure"].state()["NodeList"]
    cluster.fail(made["failing node"])
    return made


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        error = np.linalg.norm(other[name] - array) / max(np.linalg.norm(array), 1e-300)
        assert error <= 1e-10, f"{name}: {error:.2e}"


def test_a_job_trains_on_two_nodes(jobs):
    job = jobs["plain"]
    assert job.ended()["Restarts"] == "0"
    # One core was asked for per task; the machine may have more.
    assert re.search(r"hosts  node\d, node\d, each: 1 x cpu \(\w+, 1 thread\)", job.log)
    assert f"--run-dir runs/{job.number} --resume --device cpu" in job.log


def test_tasks_of_an_array_have_seeds_and_directories_of_their_own(jobs):
    job = jobs["array"]
    for task, restarts in ((3, "0"), (4, "1")):
        assert job.ended(f"{job.number}_{task}")["Restarts"] == restarts, "the other one is done"
        config = (job.folder / "runs" / f"{job.number}_{task}" / "config.toml").read_text()
        assert f"\nseed = {task} " in config


def test_options_after_the_script_hold(jobs):
    job = jobs["gpu"]
    job.ended()
    same(jobs["plain"].weights(), job.weights("mine"))
    assert not (job.folder / "runs").exists()


def test_a_mixed_job_is_one_job_and_goes_on_after_a_warning(jobs):
    job = jobs["mixed"]
    assert job.ended()["Restarts"] == "1"
    file = job.folder / f"mpicnn-{job.number}.json"
    hosts = [rank["host"] for rank in json.loads(file.read_text())["ranks"]]
    assert len(hosts) == 2 and hosts[0] != hosts[1] == slurm_cluster.GPU_NODE
    assert "stopped by SIGUSR1, saved" in job.log
    same(jobs["plain"].weights(), job.weights())


def test_a_requeued_job_goes_on(jobs):
    job = jobs["requeue"]
    assert job.ended()["Restarts"] == "1"
    same(jobs["plain"].weights(), job.weights())


def test_a_job_whose_node_fails_goes_on_on_another(jobs):
    job = jobs["failure"]
    assert job.ended()["NodeList"] != jobs["failing node"]
    assert f"host of rank 0: {jobs['failing node']} when measured, " in job.log
    assert ", from step " in job.log
    same(jobs["plain"].weights(), job.weights())


def test_a_job_that_its_time_limit_cuts_goes_on_to_the_end(jobs):
    job = jobs["limit"]
    assert int(job.ended()["Restarts"]) >= 1
    assert "stopped by SIGUSR1, saved" in job.log and ", from step " in job.log
    same(jobs["plain"].weights(), job.weights())


def test_srun_without_the_librarys_plugin_is_told_so(cluster):
    command = ("--ntasks=2", sys.executable, "-m", "mpicnn.train")
    told = cluster.attempt("srun", *command, env=mpi_jobs.environment()).stderr
    lines = [line for line in told.splitlines() if line.startswith("mpicnn: ")]
    assert len(lines) == 1 and "that library needs srun --mpi=pmi2" in lines[0], told
