"""Runs with every optimiser: they resume exactly, on any ranks, and are tested with the mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import sample
from mpi4py import MPI

import mpicnn
from mpicnn.checkpoint import read_tensors
from mpicnn.commands import evaluate, train
from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.run.setup import training_loss
from mpicnn.settings.definitions import Settings

OPTIMISERS = {
    "nesterov": ("--nesterov", "--clip", 0.5),
    "adamw": ("--optimiser", "adamw", "--rate", 0.001, "--ema", 0.7),
    "lars": ("--optimiser", "lars", "--rate", 2, "--ema", 0.7, "--clip", 0.5),
    "lamb": ("--optimiser", "lamb", "--ema", 0.7, "--clip", 0.5),
}
LOSS = ("--label-smoothing", 0.1, "--class-weights", "balanced")


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Train on the ranks of `comm` in a directory that all of them share."""

    def run(comm: Any, *arguments: Any) -> Path:
        where = Path(comm.bcast(str(tmp_path)))
        monkeypatch.chdir(where)
        if comm.rank == 0 and not Path("a.h5").exists():
            sample(Path("a.h5"), train=24, test=8, shape=(1, 12, 12))
        comm.Barrier()
        argv = (
            "train", "--data", "a.h5", "--batch", 8, "--precision", "float64", "--threads", 1,
            "--progress", "off", *arguments,
        )  # fmt: skip
        with Signals() as signals:
            train.main(comm, [str(word) for word in argv], signals)
        return where

    return run


def final(run: Path) -> dict[str, Any]:
    return read_tensors(max((run / "checkpoints").iterdir()))


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        error = np.linalg.norm(found[name] - array)
        assert error <= 1e-12 * max(1.0, np.linalg.norm(array)), name


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_run_goes_on_as_if_it_had_not_ended(begin, name) -> None:
    how = (*OPTIMISERS[name], *LOSS)
    begin(MPI.COMM_SELF, "--run-dir", "whole", "--epochs", 2, *how)
    begin(MPI.COMM_SELF, "--run-dir", "parts", "--epochs", 1, *how)
    where = begin(MPI.COMM_SELF, "--run-dir", "parts", "--epochs", 2, "--resume", *how)
    agree(final(where / "parts"), final(where / "whole"))


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_run_goes_on_with_other_ranks_and_stages(begin, subcomm, name) -> None:
    comm, how = subcomm(2), (*OPTIMISERS[name], *LOSS)
    begin(comm, "--run-dir", "parts", "--epochs", 1, "--stages", 2, *how)
    where = begin(comm, "--run-dir", "parts", "--epochs", 2, "--resume", "--sync", "sharded", *how)
    if comm.rank == 0:
        begin(MPI.COMM_SELF, "--run-dir", "whole", "--epochs", 2, *how)
        agree(final(where / "parts"), final(where / "whole"))
    comm.Barrier()


NORMALISED = """layer = [
    { type = "conv", o = 4, kernel = 3 }, { type = "batchnorm" }, { type = "flatten" },
    { type = "linear", o = "classes" },
]
"""


def test_tests_and_predictions_use_the_mean(begin, tmp_path, capfd) -> None:
    (tmp_path / "net.toml").write_text(NORMALISED)
    how = (*OPTIMISERS["adamw"], "--model", "net.toml")
    where = begin(MPI.COMM_SELF, "--run-dir", "run", "--epochs", 1, *how)
    shown = capfd.readouterr().out
    saved = final(where / "run")
    held = mpicnn.load(where / "run", comm=MPI.COMM_SELF).state
    for section, part in (("params", held.params), ("buffers", held.buffers)):
        assert part
        for name, w in part.items():
            np.testing.assert_array_equal(w, saved[f"ema/{name}"])
            assert not np.array_equal(w, saved[f"{section}/{name}"])
    evaluate.main(MPI.COMM_SELF, ["evaluate", "run"])
    first, test = capfd.readouterr().out.splitlines()
    assert "step 3 (mean of the weights, ema 0.7), 8 test images" in first
    assert test.partition(", top-5")[0] in shown
    assert "note: ema" not in shown


def test_a_mean_over_more_steps_than_the_run_has_is_told(begin, capfd) -> None:
    begin(MPI.COMM_SELF, "--run-dir", "run", "--epochs", 1, "--ema", 0.999)
    assert "note: ema 0.999 is a mean over some 1000 steps, but the run has 3" in (
        capfd.readouterr().out
    )


def test_another_optimiser_is_refused(begin) -> None:
    begin(MPI.COMM_SELF, "--run-dir", "run", "--epochs", 1, *OPTIMISERS["adamw"])
    for other in (("--optimiser", "lamb"), ("--ema", 0), ("--clip", 1), ("--nesterov",)):
        again = ("--run-dir", "run", "--epochs", 2, "--resume", *OPTIMISERS["adamw"], *other)
        with pytest.raises(UserError, match="other settings|nesterov is for"):
            begin(MPI.COMM_SELF, *again)


def test_class_weights_are_those_of_the_data(tmp_path: Path) -> None:
    sample(tmp_path / "a.h5", train=24, test=8, shape=(1, 4, 4))
    with open_dataset(str(tmp_path / "a.h5")) as data:
        labels, classes = data.split("train").labels, len(data.classes)
        found = training_loss(Settings(class_weights="balanced"), data).weights
        counts = np.bincount(labels, minlength=classes)
        # as sklearn.utils.class_weight.compute_class_weight("balanced", …)
        np.testing.assert_allclose(found, len(labels) / (classes * counts), rtol=1e-15)
        given = ",".join(map(str, range(1, classes + 1)))
        settings = Settings(class_weights=given, label_smoothing=0.1)
        assert training_loss(settings, data) == SoftmaxCrossEntropy(
            0.1, tuple(map(float, range(1, classes + 1)))
        )
        with pytest.raises(UserError, match=f"class-weights: 2 numbers, but .* {classes} classes"):
            training_loss(Settings(class_weights="1,2"), data)
        labels[labels == 1] = 0
        with pytest.raises(UserError, match="no training image is of class"):
            training_loss(Settings(class_weights="balanced"), data)
