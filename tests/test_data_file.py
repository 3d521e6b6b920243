"""Reading image files: what was written is read, however it is stored."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_samples import CLASSES, Sample, replace, sample

from mpicnn.data import store
from mpicnn.data.file import open_dataset
from mpicnn.data.write import writing
from mpicnn.errors import UserError

ROWS = [
    [0],
    [22],
    [],
    [3, 4, 5, 6],
    [6, 5, 4, 3],
    [7, 7, 7],
    [2, 4, 6, 9],
    [22, 0, 11, 12, 0, 13, 1],
    list(range(23)),
]


@pytest.fixture
def plain(tmp_path: Path) -> Sample:
    return sample(tmp_path / "plain.h5")


def check_rows(made: Sample) -> None:
    with open_dataset(made.path) as data:
        split = data.split("train")
        for rows in ROWS:
            found = split.read(np.array(rows, np.int64))
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, made.images["train"][rows])


def test_metadata(plain: Sample) -> None:
    with open_dataset(plain.path) as data:
        assert data.shape == (3, 5, 4)
        assert data.classes == CLASSES
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 23, "test": 5}
        for name, split in data.splits.items():
            np.testing.assert_array_equal(split.labels, plain.labels[name])
            assert split.labels.dtype == np.int64
        pixels = plain.images["train"].astype(np.float64)
        # Both sums are exact to float64's 1e-16 times a few thousand terms.
        np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_constant_channel_has_deviation_one(tmp_path: Path) -> None:
    made = sample(tmp_path / "a.h5", shape=(1, 1, 1), train=1)
    with open_dataset(made.path) as data:
        assert data.std.tolist() == [1.0]


def test_rows_of_contiguous_data(plain: Sample) -> None:
    check_rows(plain)


def test_rows_of_compressed_data(tmp_path: Path) -> None:
    made = sample(tmp_path / "packed.h5", gzip=9)
    with h5py.File(made.path) as file:
        assert file["train/images"].compression == "gzip"
    check_rows(made)


@pytest.mark.parametrize("chunk", [1, 4, 23])
@pytest.mark.parametrize("most", [0, 10**9])
def test_rows_of_chunked_data(
    plain: Sample, chunk: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_MEMORY_BYTES", most)
    images = plain.images["train"]
    replace(plain.path, "train/images", data=images, chunks=(chunk, 3, 5, 4))
    check_rows(plain)


def test_rows_behind_a_user_block(plain: Sample) -> None:
    content = plain.path.read_bytes()
    with (
        h5py.File(plain.path, "w", userblock_size=512) as file,
        h5py.File(io.BytesIO(content)) as old,
    ):
        for name, value in old.attrs.items():
            file.attrs[name] = value
        for name in old:
            old.copy(name, file)
    check_rows(plain)


@pytest.mark.parametrize("row", [-1, 23])
def test_rows_outside_are_refused(plain: Sample, row: int) -> None:
    with open_dataset(plain.path) as data, pytest.raises(IndexError, match="0 to 22"):
        data.split("train").read(np.array([0, row]))


def test_file_cut_short_while_open(plain: Sample) -> None:
    with h5py.File(plain.path) as file:
        middle = file["train/images"].id.get_offset() + 10 * 60 + 7
    with open_dataset(plain.path) as data:
        os.truncate(plain.path, middle)
        split = data.split("train")
        np.testing.assert_array_equal(split.read(np.arange(10)), plain.images["train"][:10])
        with pytest.raises(UserError, match="plain.h5: /train/images: .*ends at byte"):
            split.read(np.arange(11))


def test_digest_tells_files_apart(plain: Sample, tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        with open_dataset(path) as data:
            return data.digest

    first = digest(plain.path)
    assert digest(sample(tmp_path / "same.h5", gzip=1).path) == first
    assert digest(sample(tmp_path / "longer.h5", train=24).path) != first
    labels = plain.labels["test"].copy()
    labels[-1] = (labels[-1] + 1) % len(CLASSES)
    replace(plain.path, "test/labels", data=labels)
    assert digest(plain.path) != first


def test_the_digest_is_of_the_images_too(plain: Sample, tmp_path: Path) -> None:
    """By their digests where the file has them; without, by those few that it reads."""
    bare, other = sample(tmp_path / "bare.h5").path, tmp_path / "other.h5"
    with h5py.File(bare, "r+") as file:
        del file["train/sha256"], file["test/sha256"]
    plain.images["test"][2, 0, 0, 0] ^= 1
    with writing(other, CLASSES, (3, 5, 4), plain.labels) as writer:
        for split, images in plain.images.items():
            writer.append(split, images)
    digests = set()
    for path in (plain.path, other, bare):
        with open_dataset(path) as data:
            digests.add(data.digest)
    with h5py.File(bare, "r+") as file:
        file["test/images"][-1, 0, 0, 0] ^= 1
    with open_dataset(bare) as data:
        digests.add(data.digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    "how", [{"data": np.zeros((2, 32), np.uint8)}, {"data": np.zeros((1, 32))}, {"data": 1}]
)
def test_wrong_digests_are_refused(plain: Sample, how: dict[str, Any]) -> None:
    replace(plain.path, "test/sha256", **how)
    with pytest.raises(UserError, match="/test/sha256: expected"):
        open_dataset(plain.path)


def test_embedded() -> None:
    with open_dataset("embedded") as data:
        assert data.shape == (1, 28, 28)
        assert len(data.classes) == 10
        for name, each in (("train", 1000), ("test", 200)):
            counts = np.bincount(data.split(name).labels)
            assert counts.tolist() == [each] * 10
        # Fashion-MNIST's own first training labels; the first classes are not yet full there.
        assert data.split("train").labels[:8].tolist() == [9, 0, 0, 3, 0, 2, 7, 2]
        assert data.split("test").labels[:8].tolist() == [9, 2, 1, 1, 6, 1, 4, 6]
        pixels = data.split("train").read(np.arange(10_000)).astype(np.float64)
        np.testing.assert_allclose(data.mean, pixels.mean(), rtol=1e-12)
        np.testing.assert_allclose(data.std, pixels.std(), rtol=1e-12)
        # The whole set's published mean is 0.2860 and deviation 0.3530 (of 1); a sixth of it
        # deviates by well below 1 %.
        np.testing.assert_allclose(data.mean / 255, 0.2860, rtol=0.01)
        np.testing.assert_allclose(data.std / 255, 0.3530, rtol=0.01)
    assert os.path.getsize(data.path) <= 6e6


def test_accepts_int32_labels_and_all_harmless_filters(plain: Sample) -> None:
    replace(plain.path, "train/labels", data=plain.labels["train"].astype(">i4"))
    images = plain.images["train"]
    how = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    replace(plain.path, "train/images", data=images, chunks=(5, 3, 5, 4), **how)
    check_rows(plain)
    with open_dataset(plain.path) as data:
        np.testing.assert_array_equal(data.split("train").labels, plain.labels["train"])
