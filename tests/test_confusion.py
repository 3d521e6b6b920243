"""What a network takes for what: by class, as a matrix, as CSV and as a picture."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from data_samples import sample
from mpi4py import MPI

from mpicnn.commands import evaluate
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals
from mpicnn.ops import numpy as ops
from mpicnn.run.confusion import Confusion
from mpicnn.run.training import train
from mpicnn.settings.definitions import Settings
from mpicnn.step.executor import guessed

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2])
GUESSES = np.array([0, 0, 1, 2, 1, 1, 1, 0])
NAMES = ("cat, black", "$dög_1$", "漢\x1b[2J", "none")
SEEN = Confusion(NAMES, LABELS, GUESSES)
MATRIX = [[2, 1, 1, 0], [0, 3, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_by_class() -> None:
    assert SEEN.matrix().tolist() == MATRIX
    assert SEEN.by_class() == [
        "label  precision    recall  images  class",
        "    0    66.67 %   50.00 %       4  cat, black",
        "    1    75.00 %  100.00 %       3  $dög_1$",
        "    2     0.00 %    0.00 %       1  漢\\x1b[2J",
        "    3          -         -       0  none",
    ]
    assert SEEN.table() == [
        "images of a class (rows) taken for a class (columns), by label",
        "   0  1  2  3",
        "0  2  1  1  0",
        "1  0  3  0  0",
        "2  1  0  0  0",
        "3  0  0  0  0",
    ]
    (line,) = Confusion([str(i) for i in range(21)], LABELS, GUESSES).table()
    assert line == "21 classes: for the matrix, --confusion FILE.csv or FILE.png"


def test_as_csv(tmp_path: Path) -> None:
    SEEN.write(tmp_path / "a.CSV")
    with open(tmp_path / "a.CSV", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["class", *NAMES] and [row[0] for row in rows] == list(NAMES)
    assert [[int(number) for number in row[1:]] for row in rows] == MATRIX


@pytest.mark.parametrize("classes", [4, 30, 70])
def test_as_a_picture(tmp_path: Path, classes: int, recwarn: pytest.WarningsRecorder) -> None:
    """Whatever the classes are called."""
    pytest.importorskip("matplotlib")
    names = (*NAMES, *(f"${i}^{{" for i in range(classes - len(NAMES))))
    Confusion(names, LABELS, GUESSES).write(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1 and not recwarn.list


def test_what_is_seen_is_what_top1_counts() -> None:
    """Also where logits are equal or not numbers: then the right class does not win."""
    draw = np.random.default_rng(3)
    for classes in (1, 2, 5):
        logits = draw.integers(0, 3, (200, classes)).astype(np.float32)
        logits[draw.random(logits.shape) < 0.02] = np.nan
        labels = draw.integers(0, classes, 200)
        seen = guessed(logits, labels)
        assert (seen == labels).sum() == ops.topk_correct(logits, labels, (1,))[0]
        apart = logits + draw.random(logits.shape).astype(np.float32) / 2
        numbers = ~np.isnan(logits).any(axis=1)
        np.testing.assert_array_equal(
            guessed(apart, labels)[numbers], apart.argmax(axis=1)[numbers]
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data have a validation split."""
    root = tmp_path_factory.mktemp("run")
    data = sample(root / "a.h5", train=16, test=11, validation=6, shape=(1, 12, 12)).path
    settings = Settings(
        data=str(data), epochs=1, batch=8, threads=1, progress="off", run_dir=str(root / "run")
    )
    train(MPI.COMM_SELF, settings, Signals())
    return root


def command(*arguments: object) -> None:
    evaluate.main(MPI.COMM_SELF, ["evaluate", *map(str, arguments), "--eval-batch", "4"])


def test_evaluate_by_class(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for split, count in (("test", 11), ("validation", 6), ("train", 16)):
        out = tmp_path / f"{split}.csv"
        command(trained / "run", "--split", split, "--by-class", "--confusion", out)
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].endswith(f"step 2, {count} {split} images of {trained / 'a.h5'}")
        top1 = re.match(rf"{split}: loss .*top-1 (.*) %, top-5", lines[1])
        rows = [line.split(",")[1:] for line in out.read_text().splitlines()[1:]]
        matrix = np.array(rows, int)
        assert matrix.sum() == count
        assert top1 and f"{100 * matrix.trace() / count:.2f}" == top1[1]
        assert [line.split() for line in lines[11:15]] == [
            [str(label), *row] for label, row in enumerate(rows)
        ]
        assert lines[-1] == f"{out}: the confusion matrix"
    command(
        trained / "run", "--split", "train", "--confusion", tmp_path / "test.csv", "--overwrite"
    )
    assert (tmp_path / "test.csv").read_text() == (tmp_path / "train.csv").read_text()
    capfd.readouterr()
    command(trained / "run", "--checkpoint", 2)
    assert len(capfd.readouterr().out.splitlines()) == 2


def test_wrong_wishes_are_refused_before_the_work(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(evaluate, "load_trained", None)  # not even the checkpoint is read
    for options, message in (
        (("--confusion", tmp_path / "there.csv"), "there.csv: exists; give --overwrite"),
        (("--confusion", tmp_path / "none/a.csv"), "none: no such directory"),
        (("--confusion", tmp_path / "a.txt"), r"a.txt: expected a name that ends in .csv or .png"),
        (("--confusion", tmp_path / "a.png"), r"pictures need matplotlib: pip install 'mpicnn\[pl"),
        (("--split", "tst"), "--split 'tst': expected test, validation or train"),
        (("--checkpoint", "newest"), "expected auto, best, last or the number of a step"),
    ):
        with pytest.raises(UserError, match=message):
            command(trained / "run", *options)
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    for arguments, message in (
        ((trained / "run/checkpoints/best.h5", "--checkpoint", "last"), "is a checkpoint file"),
        (
            (trained / "run", "--checkpoint", "1"),
            "no such checkpoint; there is 2, best in this run",
        ),
    ):
        with pytest.raises(UserError, match=message):
            command(*arguments)
    other = sample(tmp_path / "b.h5", shape=(1, 12, 12)).path
    with pytest.raises(UserError, match="b.h5: has no validation images, but train and test im"):
        command(trained / "run", "--data", other, "--split", "validation")
