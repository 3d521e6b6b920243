"""The best state of a run is kept and tested in the end; a run that gets no better ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import data_samples
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.checkpoint import Checkpoints, read_meta, read_tensors
from mpicnn.data.file import open_dataset
from mpicnn.job.signals import Signals
from mpicnn.run import testing
from mpicnn.run.load import load_trained
from mpicnn.run.metrics import read_rows
from mpicnn.run.testing import Score
from mpicnn.run.trainer import augmentation
from mpicnn.run.training import Trained, train
from mpicnn.settings.command_settings import LoadSettings
from mpicnn.settings.definitions import Settings

STEPS = 6  # of 21 images in batches of 8, two epochs, each with a test of 3 batches of 4
BEST = 3  # in the middle, so that what is tested in the end is not the last state
SELF = MPI.COMM_SELF


class After(Signals):
    """Ask for a stop when it is looked for the `count`-th time."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def run(
    directory: Path,
    images: Path,
    signals: Signals | None = None,
    comm: MPI.Intracomm = SELF,
    **named: Any,
) -> Trained:
    """Train with a test after each step, or go on."""
    options: dict[str, Any] = {
        "data": str(images), "batch": 8, "eval_batch": 4, "epochs": 2, "precision": "float64",
        "threads": 1, "keep": 9, "evaluate_every": 0.33, "progress": "off", "rate": 0.1,
        "best": "loss", "run_dir": str(directory), "resume": directory.exists(),
    }  # fmt: skip
    return train(comm, Settings(**options | named), signals or Signals())


def rows(directory: Path, split: str) -> list[tuple[int, float]]:
    found = read_rows(directory / "metrics.csv")
    return [(row.step, row.loss) for row in found if row.split == split]


def best_of(directory: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    path = directory / "checkpoints" / "best.h5"
    return read_meta(path), read_tensors(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "small.h5"
    return data_samples.sample(path, train=21, test=11, validation=9, shape=(1, 12, 12)).path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run from its begin to its end, with a checkpoint of every step."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    trained = run(directory, images, checkpoint_every=0.33)
    assert trained.finished and trained.steps == STEPS
    assert trained.score and [(trained.score.loss)] == [loss for _, loss in rows(directory, "test")]
    return directory


def test_the_best_is_kept_and_tested_in_the_end(whole: Path, images: Path) -> None:
    validations = rows(whole, "validation")
    assert [step for step, _ in validations] == list(range(1, STEPS + 1))
    step, loss = min(validations, key=lambda each: each[1])
    assert step == BEST
    meta, tensors = best_of(whole)
    assert meta["step"] == step and meta["best"]["score"][0] == loss
    same = read_tensors(whole / "checkpoints" / f"step-{step:08d}.h5")
    assert all(np.array_equal(tensors[name], same[name]) for name in same)
    ((tested, found),) = rows(whole, "test")
    assert tested == step
    assert found == score_of(SELF, whole, images, "best", "test").loss
    assert loss == score_of(SELF, whole, images, "auto", "validation").loss
    log = (whole / "log.txt").read_text()
    assert f"validation: best loss {loss:.4f} at step {step}, kept as checkpoints/best.h5" in log
    assert f"\ntest: loss {found:.4f}" in log and f"(of step {step})" in log
    assert f"step {step}/{STEPS} epoch 1.00 validation loss {loss:.4f}" in log
    assert "21 + 9 + 11 images" in log and "note" not in log


def loaded(comm: MPI.Intracomm, directory: Path, which: str) -> Any:
    machine = LoadSettings(run="", threads=1)
    return load_trained(comm, str(directory), which, "", machine)


def score_of(
    comm: MPI.Intracomm, directory: Path, images: Path, which: str, split: str, guesses: Any = None
) -> Score:
    trained = loaded(comm, directory, which)
    with open_dataset(images) as data:
        augment = augmentation(trained.settings)
        examples = testing.TestSet(data, augment, 4, data.mean, data.std, split=split)
        score = testing.test(trained.distributed, trained.state, examples, guesses=guesses)
    assert score
    return score


@pytest.mark.limit(120)
def test_a_run_that_stops_anywhere_chooses_the_same(
    tmp_path: Path, whole: Path, images: Path
) -> None:
    """Also in the last test, which is not of the last state: nothing of that may be saved."""
    meta, tensors = best_of(whole)
    looks = STEPS * 4 + 1 + 3  # before, at each step and batch of a test, and in the last test
    for count in (9, 11, looks - 5, looks - 2):
        directory = tmp_path / f"stopped-{count}"
        assert not run(directory, images, After(count)).finished, count
        assert run(directory, images).finished
        for split in ("validation", "test"):
            assert rows(directory, split) == rows(whole, split), count
        again, found = best_of(directory)
        assert again["best"] == meta["best"]
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
        last = read_meta(directory / "checkpoints" / f"step-{STEPS:08d}.h5")
        assert last["step"] == STEPS
    assert run(tmp_path / "more", images, After(looks - 1)).finished, (
        "there is no later place to stop"
    )


class KilledError(Exception):
    """Stands for the end of the process."""


def test_a_kill_between_two_writes_loses_no_best(
    tmp_path: Path, whole: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the best is written and before the checkpoint that knows of it, and before either."""
    save = Checkpoints.save
    meta, tensors = best_of(whole)

    def dies(before: bool) -> Callable[..., Path]:
        def saves(self: Checkpoints, comm: Any, state: Any, about: Any, best: bool = False) -> Path:
            if before and about["step"] == meta["step"]:
                raise KilledError
            path = save(self, comm, state, about, best)
            if best and about["step"] == meta["step"]:
                raise KilledError
            return path

        return saves

    for before in (False, True):
        directory = tmp_path / f"{before}"
        monkeypatch.setattr(Checkpoints, "save", dies(before))
        with pytest.raises(KilledError):
            run(directory, images, checkpoint_every=0.33)
        monkeypatch.setattr(Checkpoints, "save", save)
        assert (best_of(directory)[0]["step"] == meta["step"]) != before
        assert run(directory, images).finished
        for split in ("validation", "test"):
            assert rows(directory, split) == rows(whole, split)
        again, found = best_of(directory)
        assert again["best"] == meta["best"]
        assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_patience(tmp_path: Path, images: Path) -> None:
    """Nothing is learnt at a rate of nearly 0, so that the first test stays the best."""
    directory = tmp_path / "run"

    def go_on(**named: Any) -> tuple[int, str]:
        trained = run(directory, images, rate=1e-300, **{"best": "auto"} | named)
        assert trained.finished and trained.score
        return trained.steps, (directory / "log.txt").read_text().split("  run ")[-1]

    steps, said = go_on(patience=2)
    assert steps == 3
    assert "ended early: no higher top-1 in 2 tests (patience 2)" in said
    assert "--patience MORE" in said and "(of step 1)" in said
    assert go_on(patience=2)[0] == 3, "it has ended"
    assert go_on(patience=4)[0] == 5
    kept = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert kept == ["best.h5", "step-00000003.h5", "step-00000005.h5"]
    steps, said = go_on(patience=0)
    assert steps == STEPS and "ended early" not in said and "--epochs MORE" in said
    assert [step for step, _ in rows(directory, "validation")] == list(range(1, STEPS + 1))
    assert [step for step, _ in rows(directory, "test")] == [1], "made again, and written once"


def test_a_best_that_is_lost_or_by_another_metric_is_chosen_anew(
    tmp_path: Path, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    best = directory / "checkpoints" / "best.h5"
    run(directory, images, epochs=0.66, rate=1e-300)
    best.write_bytes(best.read_bytes()[:-100])
    run(directory, images, epochs=1, rate=1e-300)
    assert best_of(directory)[0]["step"] == 3
    run(directory, images, epochs=1.33, rate=1e-300, best="top5")
    assert best_of(directory)[0]["best"]["by"] == "top5"
    assert best_of(directory)[0]["step"] == 4
    best.unlink()
    assert run(directory, images, epochs=1.33, rate=1e-300, best="top5").finished
    warned = [line for line in capfd.readouterr().err.splitlines() if "anew" in line]
    assert "best.h5: not a whole checkpoint" in warned[0]
    assert warned[1].endswith(
        "best top5: before, it was loss; the best is chosen anew from here on"
    )
    assert "best.h5: not a whole checkpoint: " in warned[2] and len(warned) == 3


def test_without_images_for_validation(tmp_path: Path) -> None:
    """As ever; and a best that is asked for is of the test images, which is said."""
    data = data_samples.sample(tmp_path / "a.h5", train=16, test=5, shape=(1, 12, 12)).path
    run(tmp_path / "plain", data, best="auto")
    assert [step for step, _ in rows(tmp_path / "plain", "test")] == [1, 2, 3, 4]
    assert not (tmp_path / "plain/checkpoints/best.h5").exists()
    trained = run(tmp_path / "asked", data)
    tests = rows(tmp_path / "asked", "test")
    assert trained.score and tests[-1] == (4, trained.score.loss)
    step, loss = min(tests, key=lambda each: each[1])
    assert best_of(tmp_path / "asked")[0]["step"] == step
    log = (tmp_path / "asked/log.txt").read_text()
    assert "note: the data have no images for validation" in log
    assert f"test: best loss {loss:.4f} at step {step}" in log


def test_which_checkpoint(whole: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    kept = Checkpoints(whole / "checkpoints", 1, lines.append)
    names = {which: kept.find(which) for which in ("auto", "best", "last", "3", "6")}
    assert [path and path.name for path in names.values()] == [
        "best.h5", "best.h5", "step-00000006.h5", "step-00000003.h5", "step-00000006.h5",
    ]  # fmt: skip
    with pytest.raises(Exception, match=r"step-00000011.h5: no such checkpoint; there is 1, 2, 3, "
                       "4, 5, 6, best in this run"):  # fmt: skip
        kept.find("11")
    few = Checkpoints(tmp_path, 1, lines.append)
    assert few.find("auto") is few.find("last") is None
    with pytest.raises(Exception, match="best.h5: no such checkpoint; there is none in this run"):
        few.find("best")
    assert names["3"]
    (tmp_path / "step-00000003.h5").write_bytes(names["3"].read_bytes())
    few.best.write_bytes(b"nothing")
    assert few.find("auto") == tmp_path / "step-00000003.h5"
    assert len(lines) == 1 and "best.h5: not a whole checkpoint" in lines[0]
    with pytest.raises(Exception, match="best.h5: not a whole checkpoint"):
        few.find("best")


@pytest.mark.limit(120)
def test_the_same_on_any_number_of_ranks(
    comm: MPI.Intracomm, mpi_tmp_path: Path, whole: Path, images: Path
) -> None:
    """The best state, the scores, and what is seen in every image."""
    images = Path(comm.bcast(str(images)))
    plans: list[dict[str, Any]] = [{"plan": "owt", "scheme": "b"}]
    plans += [{"stages": "2"}] if comm.size == 4 else [{"plan": "filter"}]
    for number, plan in enumerate(plans):
        directory = mpi_tmp_path / f"{number}"
        resume = {"resume": False, "run_dir": str(directory)}
        trained = run(directory, images, comm=comm, **resume, **plan)
        comm.Barrier()
        meta, tensors = best_of(directory)
        expected, others = best_of(whole)
        assert meta["step"] == expected["step"]
        np.testing.assert_allclose(meta["best"]["score"], expected["best"]["score"], rtol=1e-12)
        for name, array in others.items():
            np.testing.assert_allclose(tensors[name], array, rtol=1e-9, atol=1e-12)
        seen, alone = np.zeros(11), np.zeros(11)
        score = score_of(comm, directory, images, "auto", "test", seen)
        one = score_of(SELF, whole, images, "auto", "test", alone)
        assert trained.score
        np.testing.assert_allclose(astuple(score), astuple(one), rtol=1e-12)
        np.testing.assert_allclose(astuple(trained.score), astuple(one), rtol=1e-12)
        np.testing.assert_array_equal(seen, alone)
        with open_dataset(images) as data:
            right = seen == data.split("test").labels
        assert right.mean() == score.top1
