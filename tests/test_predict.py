"""Predictions: of files and folders, in batches, in every format, whole whatever happens."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data_samples
import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI

import mpicnn
from mpicnn.commands import predict, train
from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals
from mpicnn.run import answers
from mpicnn.run.answers import Answer, Answers
from mpicnn.run.load import TrainedModel

PICTURES = 4  # of each class
CLASSES = ("bée", "cat")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of one step on the pictures in `cat/` and `bée/`, beside the run."""
    root = tmp_path_factory.mktemp("run")
    for k, name in enumerate(CLASSES):
        for i in range(PICTURES):
            data_samples.picture(root / "source" / name / f"{i}.png", 14, 12, 3, seed=10 * k + i)
    data_samples.command("prepare", "folder", root / "source", root / "data.h5", "--size", 12)
    words = ("--data", root / "data.h5", "--batch", 6, "--run-dir", root / "run", "--epochs", 1)
    argv = ["train", *map(str, words), "--threads", "1", "--progress", "off"]
    train.main(MPI.COMM_SELF, argv, Signals())
    return root / "run"


def command(run: Path, *arguments: Any) -> None:
    predict.main(MPI.COMM_SELF, ["predict", str(run), *map(str, arguments), "--threads", "1"])


@pytest.fixture
def mixed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what to predict of, good and bad, below the working directory: 7 files in all."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.parent / "source" / "cat", "many/deep")
    Path("many/deep/1.png").write_bytes(Path("many/deep/1.png").read_bytes()[:-60])
    for name in ("notes.txt", ".hidden.png"):
        shutil.copy("many/deep/0.png", f"many/{name}")
    Path("empty").mkdir()
    data_samples.picture(Path('a,"b\n.png'), 30, 40, 3)
    return ['a,"b\n.png', "many", "gone.png", "empty"]


BAD = {"many/deep/1.png", "gone.png", "empty"}


def test_answers_are_those_for_the_images_in_the_data_set(run, tmp_path) -> None:
    """A file becomes the image that it became when the data were prepared."""
    model = mpicnn.load(run, comm=MPI.COMM_SELF, threads=1)
    command(run, run.parent / "source", "--output", tmp_path / "a.json", "--eval-batch", 3)
    found = json.loads((tmp_path / "a.json").read_text())
    names = [str(run.parent / "source" / c / f"{i}.png") for c in CLASSES for i in range(PICTURES)]
    assert [each["file"] for each in found] == names
    assert model.classes == CLASSES
    with open_dataset(run.parent / "data.h5") as data:
        parts = [data.split(name) for name in ("train", "test")]
        images = np.concatenate([part.read(np.arange(len(part))) for part in parts])
    expected = model.predict(images)
    odds = [{c["class"]: c["probability"] for c in each["classes"]} for each in found]
    table = np.array([[each[name] for name in CLASSES] for each in odds])
    order = [np.lexsort(rows.T) for rows in (table, expected)]
    np.testing.assert_allclose(table[order[0]], expected[order[1]], rtol=1e-4)
    assert len(np.unique(table[:, 0])) == len(table), "images that look alike show nothing"


def test_bad_files_are_named_and_all_others_answered(run, mixed, capfd, monkeypatch) -> None:
    counts = []
    whole = TrainedModel.probabilities

    def batch(self: TrainedModel, count: int, read: Any) -> Any:
        counts.append(count)
        return whole(self, count, read)

    monkeypatch.setattr(TrainedModel, "probabilities", batch)
    shown = {}
    for form in ("text", "csv", "json"):
        with pytest.raises(
            UserError, match="3 of 7 images cannot be read, named above; all others"
        ):
            command(run, *mixed, "--format", form, "--eval-batch", 3, "--top", 1)
        shown[form], said = capfd.readouterr()
        for name in BAD:
            assert f"mpicnn: warning: {name}: " in said
        for what in ("hidden, or left by other programs: .hidden.png", "with other endings: .txt"):
            assert f"mpicnn: note: skipped 1 {what}\n" in said
    assert counts == 3 * [3, 3, 1]
    with pytest.raises(
        UserError, match=r"^gone.png: could not be read .*; all others are answered$"
    ):
        command(run, "many/deep/0.png", "gone.png")
    with pytest.raises(UserError, match=r"^gone.png: could not be read \(No such .*\)$"):
        command(run, "gone.png")
    objects = json.loads(shown["json"])
    rows = list(csv.DictReader(io.StringIO(shown["csv"], newline="")))
    lines = shown["text"].splitlines()
    assert {each["file"] for each in objects if each.get("error")} == BAD
    assert [each["file"] for each in objects] == [row["file"] for row in rows]
    for each, row in zip(objects, rows, strict=True):
        assert row["error"] == each.get("error", "")
        for seen in each.get("classes", []):
            assert (row["place"], row["class"]) == ("1", seen["class"])
            assert float(row["probability"]) == seen["probability"]
            name = each["file"].replace("\n", r"\n")
            assert lines.pop(0) == f"{name}: {seen['class']} {100 * seen['probability']:.1f} %"
    assert not lines


def test_python_predicts_in_batches_too(run) -> None:
    model = mpicnn.load(run, comm=MPI.COMM_SELF, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 12, 12), np.uint8)
    np.testing.assert_allclose(model.predict(images, batch=3), model.predict(images), rtol=1e-4)
    assert model.predict(images[:0]).shape == (0, len(CLASSES))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--output", "kept.csv"), "kept.csv: exists already; give --overwrite"),
        (("--output", "kept.txt"), "kept.txt: expected a name that ends in .csv or .json"),
        (("--output", "no/a.csv"), "no/a.csv: cannot be written: No such file"),
        (("--output", "empty", "--format", "csv"), "empty: exists already"),
        (("--output", "empty", "--format", "csv", "--overwrite"), "empty: cannot be written: Is a"),
        (("--output", "/dev/full", "--format", "json", "--overwrite"), "full: .* No space left"),
        (("--format", "xml"), "expected auto, text, csv or json"),
    ],
)
def test_an_output_that_cannot_be_is_refused_in_one_line(run, mixed, options, said) -> None:
    for name in ("kept.csv", "kept.txt"):
        Path(name).write_text("kept")
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=said):
        command(run, *mixed, *options)
    assert sorted(Path().rglob("*")) == before
    assert {Path(name).read_text() for name in ("kept.csv", "kept.txt")} == {"kept"}


def test_an_output_may_be_replaced_and_its_name_tells_the_format(run, mixed) -> None:
    Path("a.CSV").write_text(1000 * "long before\n")
    command(run, mixed[0], "--output", "a.CSV", "--overwrite", "--top", 9)
    rows = list(csv.reader(Path("a.CSV").read_text().splitlines(keepends=True)))
    assert [row[1] for row in rows] == ["place", "1", "2"]  # of two classes


def some(count: int, at: int) -> Sequence[Answer]:
    return [Answer(f"{at + i}\udcff.png", (("é", 0.5), ("b", 1e-20))) for i in range(count)]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_file_is_whole_after_each_batch_and_after_a_failed_write(
    form, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "answers"

    def count() -> int:
        text = path.read_bytes().decode()  # UTF-8, whatever the names
        return len(json.loads(text)) if form == "json" else len(text.splitlines()) // 2

    with Answers(form, str(path)) as written:
        assert count() == 0
        for batch, size in enumerate((3, 1, 2)):
            written.add(some(size, 10 * batch))
            assert count() == (3, 4, 6)[batch]

        def full(fd: int, data: bytes, at: int) -> None:
            os.pwrite(fd, data[: len(data) // 2], at)
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch, pytest.raises(UserError, match="first 6 answers are"):
            patch.setattr(answers, "write_all", full)
            written.add(some(5, 30))
        assert count() == 6


def test_names_survive_json_exactly(tmp_path) -> None:
    with Answers("json", str(tmp_path / "a")) as written:
        written.add(some(1, 0))
    (found,) = json.loads((tmp_path / "a").read_text("ascii"))
    assert os.fsencode(found["file"]) == b"0\xff.png"
    assert found["classes"] == [
        {"class": "é", "probability": 0.5}, {"class": "b", "probability": 1e-20},
    ]  # fmt: skip


@pytest.mark.limit(60)
def test_ranks_share_the_work_under_any_encoding(run, mixed) -> None:
    for name in (b"many/\xff.png", "many/é.png".encode()):
        shutil.copy("many/deep/0.png", name)
    words = ("-m", "mpicnn.predict", run, *mixed, "--top", 1)
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    jobs = [mpi_jobs.run(ranks, *words, **plain) for ranks in (0, 3)]
    for job in jobs:
        assert job.code == 2 and job.err.count("mpicnn: error: 3 of 9 images") == 1, job.err
        assert "Traceback" not in job.err
    assert jobs[0].out == jobs[1].out
    assert jobs[0].out.isascii() and r"many/\xe9.png: b\xe9e " in jobs[0].out
    assert re.search(r"many/\\\w+ff.png: ", jobs[0].out)


@pytest.mark.limit(60)
def test_ctrl_c_leaves_a_whole_file(run, tmp_path) -> None:
    picture, out = run.parent / "source" / "cat" / "0.png", tmp_path / "a.json"
    words = ("-m", "mpicnn.predict", run, *[picture] * 4000, "--eval-batch", 2, "--output", out)
    process = mpi_jobs.start(2, *words)
    end = time.monotonic() + 30
    while time.monotonic() < end and not (out.exists() and out.stat().st_size > 1000):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    job = mpi_jobs.finish(process, 30)
    assert job.code and "Traceback" not in job.err, job.err
    found = json.loads(out.read_text())
    assert 0 < len(found) < 4000 and len(found) % 2 == 0
