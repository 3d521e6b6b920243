"""Whole jobs on GPU ranks, started as a user starts them, on GPUs that are stood in for.

Losses are those of the same job on the host's cores; speed means nothing here.
"""

import os
import shutil
from pathlib import Path

import data_samples
import mpi_jobs
import numpy as np
import pytest

from mpicnn.run.metrics import read_rows

STANDIN = Path(__file__).parent / "standin"

pytestmark = [
    pytest.mark.limit(120),
    pytest.mark.skipif(not shutil.which("g++"), reason="the stand-in compiles kernels with g++"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.h5"
    return data_samples.sample(path, train=37, test=11, shape=(1, 12, 12)).path


@pytest.fixture
def train(tmp_path, images):
    """Train for five steps on so many ranks, each of which sees two GPUs; return the job."""
    paths = os.pathsep.join([str(STANDIN), os.environ.get("PYTHONPATH", "")])

    def run(name, ranks, *options):
        fixed = ("--data", images, "--batch", 8, "--epochs", 1, "--run-dir", tmp_path / name)
        return mpi_jobs.run(
            ranks, "-m", "mpicnn.train", *fixed, *options,
            seconds=90, PYTHONPATH=paths.rstrip(os.pathsep), STANDIN_GPUS="2",
        )  # fmt: skip

    return run


def losses(job, folder):
    """Return the losses that a job that went well has written."""
    assert job.code == 0, job.err
    return np.array([row.loss for row in read_rows(folder / "metrics.csv")])


def test_gpu_ranks_train_as_the_host_does(train, tmp_path):
    precision = ("--precision", "float64")
    want = losses(train("cpu", 0, "--device", "cpu", *precision), tmp_path / "cpu")
    jobs = []
    for name, ranks, *options in (
        ("one", 0, "--device", "gpu"),
        ("host", 2, "--device", "gpu", "--transport", "host", "--plan", "owt"),
        ("nccl", 2, "--device", "gpu", "--transport", "nccl", "--plan", "filter"),
        ("shared", 3, "--device", "gpu"),
        ("mixed", 2, "--device", "gpu,cpu"),
    ):
        jobs.append(train(name, ranks, *options, *precision))
        found = losses(jobs[-1], tmp_path / name)
        # the second step was timed, on all ranks
        assert "one step, ms" in jobs[-1].out
        # the same sums in another order, in double precision, over five steps
        np.testing.assert_allclose(found, want, rtol=1e-9, err_msg=name)


def test_a_run_of_one_step_on_a_gpu_says_nothing_of_where_its_time_went(train, tmp_path):
    job = train("short", 2, "--device", "gpu,cpu", "--epochs", "0.1", "--forecast")
    assert job.code == 0, job.err
    assert "1 step in" in job.out and "one step, ms" not in job.out and "memory per" in job.out


def test_precisions_of_products(train, tmp_path):
    """The first loss, of about 4, before training makes more of the differences."""
    exact = losses(train("cpu", 0, "--precision", "float64"), tmp_path / "cpu")[0]
    error = {}
    for name in ("float32", "tf32", "bf16"):
        job = train(name, 0, "--device", "gpu", "--precision", name)
        error[name] = abs(losses(job, tmp_path / name)[0] - exact)
    # operands keep 24, 11 and 8 bits, and errors of many products cancel in part
    assert error["float32"] < 1e-5 < error["tf32"] < 2e-3 < error["bf16"] < 3e-2, error


def test_nccl_wants_a_gpu_for_every_rank(train):
    job = train("shared", 3, "--device", "gpu", "--transport", "nccl")
    assert job.code == 2 and "share a GPU" in job.err, job.err
