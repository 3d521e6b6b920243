"""Opening image files: what was written is read, and no false claim is believed."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_samples import CLASSES, Sample, replace, sample

from mpicnn.data import store
from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError

ROWS = [
    [0],
    [22],
    [],
    [3, 4, 5, 6],
    [6, 5, 4, 3],
    [7, 7, 7],
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


def virtual(file: h5py.File) -> None:
    shape = file["test/images"].shape
    source = h5py.VirtualSource(file.filename, "train/images", shape=(23, 3, 5, 4))
    layout = h5py.VirtualLayout(shape, np.uint8)
    layout[:] = source[: shape[0]]
    del file["test/images"]
    file.create_virtual_dataset("test/images", layout)


def renewed(name: str, **how: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **how)

    return change


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = link

    return change


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def group_in_place(file: h5py.File) -> None:
    del file["mean"]
    file.create_group("mean")


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.uint8)


FAR = 10**12
LABELS = [0, 1, 2, 3, 3]
OUTSIDE = [("/etc/passwd", 0, 60 * 5)]
FAULTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no format": (attribute("format", None), "'format': expected a single value"),
    "other format": (attribute("format", "images"), "'format': expected 'mpicnn-images', found"),
    "format of two": (attribute("format", ["mpicnn-images"] * 2), "expected a single value"),
    "later version": (attribute("version", 2), "'version': expected 1, found 2"),
    "version in words": (attribute("version", "1"), "'version': expected 1"),
    "no labels": (lambda file: file.__delitem__("test/labels"), "/test/labels: .*found nothing"),
    "no split": (lambda file: file.__delitem__("test"), "/test/images: .*found nothing"),
    "group": (group_in_place, "/mean: expected a dataset, found a group"),
    "soft link": (linked("test/labels", h5py.SoftLink("/elsewhere")), "/test/labels: .*hard link"),
    "dangling link": (linked("std", h5py.SoftLink("/nowhere")), "/std: .*hard link"),
    "external link": (linked("test", h5py.ExternalLink("b.h5", "/test")), "/test.*: .*hard link"),
    "virtual data": (virtual, "/test/images: .*found virtual or external"),
    "external storage": (
        renewed("test/images", shape=(5, 3, 5, 4), dtype="u1", external=OUTSIDE),
        "/test/images: .*found virtual or external",
    ),
    "empty split": (renewed("test/images", data=zeros(0, 3, 5, 4)), "/test/images: .*above 0"),
    "no pixels": (renewed("test/images", data=zeros(5, 3, 0, 4)), "/test/images: .*above 0"),
    "signed images": (renewed("train/images", data=zeros(9, 3, 5, 4).view("i1")), "uint8"),
    "float images": (renewed("train/images", data=np.zeros((9, 3, 5, 4))), "uint8, found float64"),
    "flat images": (renewed("train/images", data=zeros(23, 60)), "/train/images: expected 4 axes"),
    "scalar": (renewed("mean", data=1.0), "/mean: expected 1 axes"),
    "null": (renewed("mean", data=h5py.Empty("f8")), "/mean: expected 1 axes"),
    "unlike sizes": (renewed("test/images", data=zeros(5, 3, 5, 5)), "/test/images: .*5, 4"),
    "label too large": (renewed("test/labels", data=[*LABELS[:4], 4]), "0 to 3, found 4 at row 4"),
    "label below 0": (renewed("test/labels", data=[0, -1, 0, 0, 0]), "0 to 3, found -1 at row 1"),
    "label missing": (renewed("test/labels", data=LABELS[:4]), "one label for each of 5"),
    "byte labels": (renewed("test/labels", data=zeros(5)), "int32 or int64, found uint8"),
    "float labels": (renewed("test/labels", data=np.zeros(5)), "int32 or int64, found float64"),
    "class twice": (renewed("classes", data=["a", "b", "c", "a"]), "/classes: .*none twice"),
    "no classes": (renewed("classes", shape=(0,), dtype=h5py.string_dtype()), "at least one name"),
    "numbers for classes": (renewed("classes", data=[1, 2, 3, 4]), "/classes: .*strings"),
    "classes not in UTF-8": (renewed("classes", data=[b"\xff", b"a", b"b", b"c"]), "damaged"),
    "terminal codes": (renewed("classes", data=["\x1b[2J", "a", "b", "c"]), "printable"),
    "mean of 2": (renewed("mean", data=np.zeros(2)), r"/mean: expected float64 \(3,\)"),
    "single mean": (renewed("mean", data=np.zeros(3, "f4")), "/mean: .*found float32"),
    "mean not a number": (renewed("mean", data=[0, np.nan, 0.0]), "/mean: expected finite"),
    "std 0": (renewed("std", data=[1.0, 0.0, 1.0]), "/std: .*above 0"),
    "never written": (renewed("test/images", shape=(5, 3, 5, 4), dtype="u1"), "found 0 stored"),
    "absurd": (renewed("train/images", shape=(FAR, 3, 5, 4), dtype="u1"), "its shape .* takes"),
    "absurd labels": (renewed("test/labels", shape=(FAR,), dtype="i8"), "its shape .* takes"),
    "absurd chunked": (
        renewed("train/images", shape=(FAR, 3, 5, 4), dtype="u1", chunks=(1, 3, 5, 4)),
        "chunks, found some never written",
    ),
    "absurd chunks": (
        renewed("train/images", shape=(1, 1, 1, FAR), dtype="u1", chunks=(1, 1, 1, 2**27)),
        "chunks up to",
    ),
    "other filter": (
        renewed("test/images", data=zeros(5, 3, 5, 4), compression="lzf"),
        "no filter but gzip",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_false_claims(plain: Sample, fault: str) -> None:
    change, message = FAULTS[fault]
    with h5py.File(plain.path, "r+") as file:
        change(file)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(plain.path)
    assert str(caught.value).startswith(str(plain.path))
    assert "\n" not in str(caught.value)


def test_accepts_int32_labels_and_all_harmless_filters(plain: Sample) -> None:
    replace(plain.path, "train/labels", data=plain.labels["train"].astype(">i4"))
    images = plain.images["train"]
    how = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    replace(plain.path, "train/images", data=images, chunks=(5, 3, 5, 4), **how)
    check_rows(plain)
    with open_dataset(plain.path) as data:
        np.testing.assert_array_equal(data.split("train").labels, plain.labels["train"])


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.h5: expected a whole HDF5 file"):
            open_dataset(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(UserError, match="no such file; give an image file"):
            open_dataset(path)


def test_cut_short_anywhere(plain: Sample) -> None:
    content = plain.path.read_bytes()
    for length in range(0, len(content), 61):
        plain.path.write_bytes(content[:length])
        with pytest.raises(UserError):
            open_dataset(plain.path)


def test_damaged_anywhere(plain: Sample) -> None:
    content = plain.path.read_bytes()
    refused = 0
    for at in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        plain.path.write_bytes(damaged)
        try:
            open_dataset(plain.path).close()
        except UserError:
            refused += 1
    # Damage in pixels goes unnoticed, in the file's own structures it does not.
    assert refused > 10
