"""Small data sets of every kind, and what is in them, for the tests of mpicnn.data."""

from __future__ import annotations

import gzip as gzipped
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from numpy.typing import NDArray
from PIL import Image

from mpicnn.commands import data as commands
from mpicnn.data.file import open_dataset
from mpicnn.data.write import writing
from mpicnn.errors import UserError

Array = NDArray[Any]
CLASSES = ("ant", "bee", "cat", "dög")


@dataclass
class Sample:
    """An image file and what was put into it, by split."""

    path: Path
    images: dict[str, Array]
    labels: dict[str, NDArray[np.int64]]


def sample(
    path: Path,
    train: int = 23,
    test: int = 5,
    shape: tuple[int, int, int] = (3, 5, 4),
    gzip: int | None = None,
    validation: int = 0,
) -> Sample:
    """Write a file of random images."""
    draw = np.random.default_rng(7)
    counts = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    images = {s: draw.integers(0, 256, (n, *shape), np.uint8) for s, n in counts.items()}
    labels = {s: draw.integers(0, len(CLASSES), n) for s, n in counts.items()}
    with writing(path, CLASSES, shape, labels, gzip) as writer:
        for split in reversed(images):  # in any order
            data = images[split]
            # In two pieces: the second must go where the first ended.
            writer.append(split, data[:2])
            writer.append(split, data[2:])
    return Sample(path, images, labels)


def replace(path: Path, name: str, **how: Any) -> None:
    """Put another dataset in the place of `name`, as h5py.create_dataset makes it from `how`."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **how)


def share_name(path: Path, count: int, length: int) -> None:
    """Give a file `count` class names that are one and the same text of `length` in its heap."""
    names = ["x" * length] + [""] * (count - 1)
    replace(path, "classes", data=names, dtype=h5py.string_dtype())
    with h5py.File(path, "r+") as file:
        place = file["classes"].id.get_offset()
    with path.open("r+b") as raw:
        raw.seek(place)
        reference = raw.read(16)
        raw.seek(place)
        raw.write(reference * count)


Arrays = dict[str, Array]
DRAW = np.random.default_rng(11)
IDX = {
    "train-images-idx3-ubyte": DRAW.integers(0, 256, (17, 5, 4), np.uint8),
    "train-labels-idx1-ubyte": np.array(
        [2, 0, 1, 2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 0, 1, 2, 2], np.uint8
    ),
    "t10k-images-idx3-ubyte": DRAW.integers(0, 256, (5, 5, 4), np.uint8),
    "t10k-labels-idx1-ubyte": np.array([1, 2, 0, 0, 2], np.uint8),
}


def command(*arguments: Any) -> None:
    commands.main(MPI.COMM_SELF, ["data", *(str(argument) for argument in arguments)])


def contents(path: Path) -> tuple[Arrays, Arrays]:
    """Return images and labels by split."""
    with open_dataset(path) as data:
        images = {n: s.read(np.arange(len(s))) for n, s in data.splits.items()}
        return images, {n: s.labels for n, s in data.splits.items()}


def refused(message: str, out: Path, *arguments: Any) -> None:
    """Check that the command fails with `message` and leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        command("prepare", *arguments)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def idx_directory(path: Path, packed: bool = False, **changed: bytes) -> Path:
    """Write the four files, some of them `changed` (by the first word and kind of their names)."""
    path.mkdir()
    for name, array in IDX.items():
        content = changed.get("_".join(name.split("-")[:2]), idx_bytes(array))
        if packed:
            (path / f"{name}.gz").write_bytes(gzipped.compress(content))
        else:
            (path / name).write_bytes(content)
    return path


def picture(path: Path, *shape: int, seed: int = 0) -> np.ndarray:
    """Write an image of random pixels, (h, w, 3) or (h, w), and return them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def cut_one(root: Path) -> None:
    """Take the end from one image of a folder: the eighth of nine for training."""
    path = root / "train/a/3.png"
    path.write_bytes(path.read_bytes()[:-60])


def picture_folder(root: Path) -> Path:
    """Make train/ and test/ of classes a (5, 1) and B (4, 2), which sorts first."""
    for name, train, test in (("a", 5, 1), ("B", 4, 2)):
        for split, count in (("train", train), ("test", test)):
            for i in range(count):
                picture(root / split / name / f"{i}.png", 6, 5, 3, seed=i)
    return root
