"""Images for validation: from a folder, or drawn from those for training."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_samples import CLASSES, IDX, command, contents, idx_directory, picture, refused, sample
from mpi4py import MPI

from mpicnn.data.draw import Draw, amounts, drawn
from mpicnn.data.file import open_dataset
from mpicnn.data.verify import verify, verify_sample
from mpicnn.errors import UserError


def test_a_file_with_a_validation_split(tmp_path: Path) -> None:
    made = sample(tmp_path / "a.h5", train=9, test=5, validation=4)
    without = sample(tmp_path / "b.h5", train=9, test=5)
    with open_dataset(made.path) as data, open_dataset(without.path) as other:
        assert list(data.splits) == ["train", "validation", "test"]
        assert (data.choosing, other.choosing) == ("validation", "test")
        for name, split in data.splits.items():
            found = split.read(np.arange(len(split)))
            np.testing.assert_array_equal(found, made.images[name])
        assert data.digest != other.digest
        with pytest.raises(UserError, match="has no validation images, but train and test images"):
            other.split("validation")
        verify_sample(MPI.COMM_SELF, data)
        assert verify(MPI.COMM_SELF, data)
    with h5py.File(made.path, "r+") as file:
        file["validation/images"][2] ^= 1
    with (
        open_dataset(made.path) as data,
        pytest.raises(UserError, match="/validation/images: changed or damaged"),
    ):
        verify(MPI.COMM_SELF, data)


def test_false_claims_of_a_validation_split(tmp_path: Path) -> None:
    path = sample(tmp_path / "a.h5", validation=4).path
    with h5py.File(path, "r+") as file:
        del file["validation/labels"]
    with pytest.raises(UserError, match="/validation/labels: expected a dataset, found nothing"):
        open_dataset(path)
    with h5py.File(path, "r+") as file:
        del file["validation"]
        file["validation"] = h5py.SoftLink("/test")
    with pytest.raises(UserError, match="/validation/images: expected a hard link"):
        open_dataset(path)


def test_the_digest_of_a_file_without_is_as_ever() -> None:
    """Runs that began before there were validation splits go on with their data."""
    with open_dataset("embedded") as data:
        assert data.digest == "f98afbf8d490f75c27645fc8f1f90f8f4809fc76cb1d5ed9da518be5b3dfa5b7"


def test_drawn_by_class_and_seed() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat([0, 1, 2, 3], [50, 30, 15, 5]))

    def places(amount: str, seed: int = 0) -> np.ndarray:
        return drawn(labels, CLASSES, Draw(amount, seed))

    assert np.bincount(labels[places("0.2")]).tolist() == [10, 6, 3, 1]
    assert np.bincount(labels[places("20")]).tolist() == [10, 6, 3, 1]
    assert np.bincount(labels[places("0.01")]).tolist() == [1, 1, 1, 1]  # at least one
    assert np.bincount(labels[places(".999")]).tolist() == [49, 29, 14, 4]  # never all
    found = places("0.2")
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, places("20"))  # the same ones
    assert not np.array_equal(found, places("20", seed=1))
    assert set(places("20")) < set(places("40"))


def test_other_images_are_drawn_for_validation_than_for_testing(tmp_path: Path) -> None:
    """Of one class in a folder: places 0 … 9, each image with its number as pixels."""
    for name in ("a", "b"):
        for k in range(20):
            picture(tmp_path / "in" / name / f"{k:02}.png", 2, 2, 3, seed=k)
    out = tmp_path / "a.h5"
    command("prepare", "folder", tmp_path / "in", out, "--test-fraction", 0.3, "--validation", 0.5)
    images, labels = contents(out)
    assert {s: np.bincount(of).tolist() for s, of in labels.items()} == {
        "train": [7, 7], "validation": [7, 7], "test": [6, 6],
    }  # fmt: skip
    of_a = [image.tobytes() for s in images for image in images[s][labels[s] == 0]]
    assert len(set(of_a)) == 20  # every image once


def test_prepare_draws(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, out, again = idx_directory(tmp_path / "in"), tmp_path / "a.h5", tmp_path / "b.h5"
    command("prepare", "idx", source, out, "--validation", 6)
    shown = capfd.readouterr().out.splitlines()
    assert shown[0] == "drawn   6 training images for validation, by class, seed 0"
    assert "label     train  validation      test  class" in shown
    assert "  all        11           6         5" in shown
    images, labels = contents(out)
    whole = IDX["train-images-idx3-ubyte"][:, None]
    both = np.concatenate([images["train"], images["validation"]])
    assert sorted(i.tobytes() for i in both) == sorted(i.tobytes() for i in whole)
    assert np.bincount(labels["validation"]).tolist() == [2, 2, 2]
    with open_dataset(out) as data:  # of the training images alone
        np.testing.assert_allclose(data.mean, images["train"].mean(), rtol=1e-12)
    command("prepare", "idx", source, again, "--validation", 6)
    assert again.read_bytes() == out.read_bytes()
    command("prepare", "idx", source, again, "--validation", 6, "--seed", 1, "--overwrite")
    assert again.read_bytes() != out.read_bytes()
    # of what is taken
    command("prepare", "idx", source, again, "--per-class", "4,1", "--validation", 0.25, "--overw"
            "rite")  # fmt: skip
    labels = contents(again)[1]
    assert {s: np.bincount(of).tolist() for s, of in labels.items()} == {
        "train": [3, 3, 3], "validation": [1, 1, 1], "test": [1, 1, 1],
    }  # fmt: skip


def test_prepare_folder_with_validation(tmp_path: Path) -> None:
    root, out = tmp_path / "in", tmp_path / "a.h5"
    pixels = {}
    for s, (split, count) in enumerate((("train", 3), ("val", 2), ("test", 1))):
        for name in ("a", "b"):
            for k in range(count):
                where = root / split / name / f"{k}.png"
                pixels[split, name, k] = picture(where, 4, 4, 3, seed=20 * s + k)
    command("prepare", "folder", root, out)
    images, labels = contents(out)
    assert {s: of.tolist() for s, of in labels.items()} == {
        "train": [0] * 3 + [1] * 3, "validation": [0, 0, 1, 1], "test": [0, 1],
    }  # fmt: skip
    np.testing.assert_array_equal(images["validation"][1], pixels["val", "a", 1].transpose(2, 0, 1))
    command("prepare", "folder", root, out, "--per-class", "2,1,1", "--overwrite")
    assert {s: len(of) for s, of in contents(out)[1].items()} == {
        "train": 4, "validation": 2, "test": 2,
    }  # fmt: skip
    new = tmp_path / "b.h5"
    for message, options in (
        ("in: --per-class 2,1: expected 3 numbers, for train, validation and test images",
         ("--per-class", "2,1")),
        ("in: has images for validation; --validation is for a source without",
         ("--validation", 2)),
    ):  # fmt: skip
        refused(message, new, "folder", root, new, *options)
    command("prepare", "folder", root, out, "--splits", "train,test", "--validation", "2",
            "--overwrite")  # fmt: skip
    assert {s: len(of) for s, of in contents(out)[1].items()} == {
        "train": 4, "validation": 2, "test": 2,
    }  # fmt: skip


def test_what_cannot_be_drawn() -> None:
    labels = np.repeat([0, 1, 2, 3], [9, 9, 9, 2])
    for amount, message in (
        ("3", "validation 3: expected at least 4, one image of every class"),
        ("28", "validation 28: no training images of"),
        ("10000", "validation 10000: no training images of ant would be left: it has 9 of 29"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            drawn(labels, CLASSES, Draw(amount))
    with pytest.raises(UserError, match="validation 0.1: dög has one training image; expected two"):
        drawn(labels[:-1], CLASSES, Draw("0.1"))
    assert amounts(np.array([9, 9, 9, 2]), "25").tolist() == [8, 8, 8, 1]


@pytest.mark.parametrize("amount", ["0", "1.0", "0.0", "-3", "1e-2", "x", "0,1", "٣", "9" * 30])
def test_amounts_that_cannot_be(amount: str) -> None:
    with pytest.raises(UserError, match="--validation .*like 5000, or a fraction.*--help"):
        command("prepare", "idx", "a", "b", f"--validation={amount}")
