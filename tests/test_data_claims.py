"""Opening image files that are not what they say: refused before anything is believed."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_samples import Sample, replace, sample, share_name

from mpicnn.data.file import open_dataset
from mpicnn.errors import UserError


@pytest.fixture
def plain(tmp_path: Path) -> Sample:
    return sample(tmp_path / "plain.h5")


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


def partly_written(file: h5py.File) -> None:
    del file["test/images"]
    chunks = {"chunks": (1, 3, 5, 4), "compression": "gzip"}
    file.create_dataset("test/images", (5, 3, 5, 4), np.uint8, **chunks)[0] = 0


def digests_of(rows: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file["train/sha256"].attrs["rows"] = rows

    return change


def group_in_place(file: h5py.File) -> None:
    del file["mean"]
    file.create_group("mean")


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.uint8)


FAR = 10**12
LABELS = [0, 1, 2, 3, 3]
ZIP = {"compression": "gzip", "fillvalue": 0}
OUTSIDE = [("/etc/passwd", 0, 60 * 5)]
FAULTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no format": (attribute("format", None), "'format': expected a single value"),
    "other format": (attribute("format", "images"), "'format': expected 'mpicnn-images', found"),
    "format of two": (attribute("format", ["mpicnn-images"] * 2), "expected a single value"),
    "later version": (attribute("version", 2), "'version': expected 1, found 2"),
    "version in words": (attribute("version", "1"), "'version': expected an integer"),
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
        "its shape .* takes",
    ),
    "many chunks": (
        renewed("test/labels", data=np.zeros(5000, "i8"), chunks=(1,)),
        "test/labels: expected 4096 chunks at most, found 5000",
    ),
    "chunks missing": (partly_written, "all of its 5 chunks, found some never written"),
    "absurd sides": (
        renewed("train/images", data=np.zeros((1, 1, 1, 2**17), "u1"), **ZIP),
        "train/images: .*sides up to 65536",
    ),
    "many packed labels": (
        renewed("train/labels", shape=(10**8,), dtype="i8", chunks=(2**20,), **ZIP),
        "train/labels: expected 16777216 bytes at most where it is compressed, found 800000000",
    ),
    "chunked classes": (
        renewed("classes", data=["a"] * 4, dtype=h5py.string_dtype(), chunks=(1,)),
        "/classes: expected texts that are stored contiguously",
    ),
    "wide classes": (renewed("classes", data=np.zeros(9, "S300000")), "2097152 bytes at most"),
    "a long class name": (renewed("classes", data=["a" * 1001, *"bcd"]), "names of 1000 char"),
    "digests of all": (digests_of(2**40), "'rows' from 1 to 279620, found 1099511627776"),
    "digests of none": (digests_of(0), "'rows' from 1"),
    "digests of text": (digests_of("23"), "'rows' of /train/sha256: expected an integer"),
    "digests of several": (digests_of([23, 23]), "'rows' of .*: expected a single value"),
    "absurd chunks": (
        renewed("train/images", shape=(1, 1, 1, FAR), dtype="u1", chunks=(1, 1, 1, 2**27)),
        "chunks up to",
    ),
    "other filter": (
        renewed("test/images", data=zeros(5, 3, 5, 4), compression="lzf"),
        "no filter but shuffle, gzip",
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


@pytest.mark.parametrize("name", ["test/labels", "test/images"])
@pytest.mark.parametrize("size", [10**8, 1], ids=["much", "little"])
@pytest.mark.parametrize("packing", ["gzip", None])
def test_a_chunk_that_holds_more_or_less_than_a_chunk(
    plain: Sample, name: str, size: int, packing: str | None
) -> None:
    """HDF5 would take memory for all of it, or read behind its end."""
    with h5py.File(plain.path, "r+") as file:
        old = file[name][()]
        del file[name]
        how = {"chunks": old.shape, "compression": packing, "shuffle": True, "fletcher32": True}
        made = file.create_dataset(name, data=old, **how)
    with open_dataset(plain.path) as data:
        images = data.split("test").read(np.arange(5))
        np.testing.assert_array_equal(images, plain.images["test"])
    with h5py.File(plain.path, "r+") as file:
        made = file[name]
        stored = zlib.compress(bytes(size)) if packing else bytes(min(size, 10**6))
        made.id.write_direct_chunk((0,) * old.ndim, stored)
    with (
        pytest.raises(UserError, match="does not unpack to|its shape"),
        open_dataset(plain.path) as data,
    ):
        data.split("test").read(np.arange(2))


@pytest.mark.parametrize("packing", ["gzip", None])
def test_a_chunk_that_the_index_places_elsewhere(plain: Sample, packing: str | None) -> None:
    """There are as many chunks as there should be, but one is of rows that do not exist."""
    old = plain.images["test"]
    replace(plain.path, "test/images", data=old, chunks=(1, 3, 5, 4), compression=packing)
    content = bytearray(plain.path.read_bytes())
    at = content.index(struct.pack("<5Q", 3, 0, 0, 0, 0))  # the chunk's place in the B-tree's key
    content[at : at + 8] = struct.pack("<Q", 3 + 2**40)
    plain.path.write_bytes(content)
    with (
        open_dataset(plain.path) as data,
        pytest.raises(UserError, match=r"images: could not be read \(.*chunk at .* is missing"),
    ):
        data.split("test").read(np.arange(5))


def test_class_names_that_share_one_place(plain: Sample) -> None:
    share_name(plain.path, 1000, 10**6)
    assert plain.path.stat().st_size < 2 * 10**6
    with pytest.raises(UserError, match="2097152 bytes at most, found 1000000000"):
        open_dataset(plain.path)


def test_a_heap_of_texts_that_leads_to_itself(plain: Sample) -> None:
    """HDF5 would read it for ever."""
    content = plain.path.read_bytes()
    name = content.index(b"mpicnn-images")
    for at, word in ((name - 16, bytes(16)), (name - 8, (2**64 - 16).to_bytes(8, "little"))):
        plain.path.write_bytes(content[:at] + word + content[at + len(word) :])
        with pytest.raises(UserError, match="damaged HDF5 file"):
            open_dataset(plain.path)


def test_a_large_heap_that_leads_to_itself(plain: Sample) -> None:
    """HDF5 reads it in two parts, and the damage is in the second."""
    names = ["x" * 9000, "b", "c", "d"]
    replace(plain.path, "classes", data=names)
    content = plain.path.read_bytes()
    at = content.index(b"x" * 9000)
    shorter, free = (8000).to_bytes(8, "little"), at + 8000  # and what follows is no object
    content = content[: at - 8] + shorter + content[at:free] + bytes(32) + content[free + 32 :]
    plain.path.write_bytes(content)
    with pytest.raises(UserError, match="damaged HDF5 file"):
        open_dataset(plain.path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.h5")
    with pytest.raises(UserError, match="a.h5: not a file"):
        open_dataset(tmp_path / "a.h5")


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a.h5: expected a whole HDF5 file"):
            open_dataset(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.h5", tmp_path):
        with pytest.raises(UserError, match="(no such|not a) file; give an image file"):
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
    for at in range(0, len(content), 53):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        plain.path.write_bytes(damaged)
        try:
            open_dataset(plain.path).close()
        except UserError:
            refused += 1
    # Damage in pixels goes unnoticed, in the file's own structures it does not.
    assert refused > 10
