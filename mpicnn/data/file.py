"""Open an image file and read rows of it (format: docs/data-format.md)."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np

from mpicnn.data.check import Checker, check_equal_images
from mpicnn.data.digests import SAMPLED, Digests
from mpicnn.data.layout import SPLITS, VALIDATION, Array, ImageShape, Index
from mpicnn.data.raw import RawFile
from mpicnn.data.store import Store, open_store
from mpicnn.errors import UserError
from mpicnn.text import listed

EMBEDDED = "embedded"

DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError)
"""What h5py raises where a damaged file misleads HDF5."""


@dataclass(frozen=True)
class Split:
    """Hold one split: its labels, int64 (n,), and the way to its images, each of `shape`.

    `digests` are of the images as they were prepared, None where the file has none.
    """

    name: str
    path: str
    shape: ImageShape
    labels: Index
    store: Store
    digests: Digests | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def read(self, indices: Index) -> Array:
        """Return the images at `indices` (any order, repeats allowed): uint8 (len, c, h, w).

        Each image is read once, in the order of the file; no indices, no reading. Raises
        IndexError outside 0 … n-1 and UserError where the file does not give the images.
        """
        indices = np.asarray(indices, np.int64)
        if not indices.size:
            return np.empty((0, *self.shape), np.uint8)
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"{self.name}: rows 0 to {len(self) - 1}, asked for {indices}")
        rows, back = np.unique(indices, return_inverse=True)
        try:
            images = self.store.read(rows)
        except DAMAGED as error:
            raise UserError(
                f"{self.path}: /{self.name}/images: could not be read ({one_line(error)});"
                " was the file changed or cut short since it was opened?"
            ) from error
        return images if np.array_equal(rows, indices) else images[back]


@dataclass(frozen=True)
class Dataset:
    """Hold an open image file: what it says about itself, and its splits.

    `shape` is (c, h, w); `mean` and `std`, float64 (c,), are of the training images in units of
    0 … 255; `splits` are those that the file has, in the order of `layout.SPLITS`. Close it, or use
    it as a context manager, when the last batch has been read.
    """

    path: str
    shape: ImageShape
    classes: tuple[str, ...]
    mean: Array
    std: Array
    splits: dict[str, Split]
    file: h5py.File
    raw: RawFile

    def split(self, name: str) -> Split:
        """Return the split "train", "test" or "validation".

        Raises UserError where the file has no such images: those for validation may be missing.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.path}: has no {name} images, but {listed(self.splits)} images; "
                "make a file that has some with 'python -m mpicnn.data prepare --validation'"
            )
        return self.splits[name]

    @property
    def choosing(self) -> str:
        """Return the name of the split to choose by: that for validation, if there is one."""
        return VALIDATION if VALIDATION in self.splits else "test"

    @cached_property
    def digest(self) -> str:
        """Return a SHA-256 of the whole set, for ranks and resumed runs to compare.

        It is of all images by their digests; where the file has none, of a few images only.
        """
        digest = hashlib.sha256(repr((self.shape, self.classes)).encode())
        splits = list(self.splits.values())
        for values in (self.mean, self.std, *(split.labels for split in splits)):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        for split in splits:
            few = np.unique(np.linspace(0, len(split) - 1, SAMPLED).astype(np.int64))
            pixels = split.read(few) if split.digests is None else split.digests.values
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    @property
    def stamp(self) -> tuple[int, int]:
        """Return the file's size in bytes and the time of its last change in ns."""
        found = os.stat(self.path)
        return found.st_size, found.st_mtime_ns

    def close(self) -> None:
        """Close the file; its splits cannot be read from then on."""
        self.file.close()
        self.raw.close()

    def __enter__(self) -> Dataset:
        """Return the dataset itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open the image file at `path`, or the packaged one for "embedded", and check its claims.

    Reads everything but the images, which are read row by row as asked for. Opened read-only
    and without locks, which network file systems often lack. Raises UserError naming the file,
    the part and what was expected.
    """
    packaged = Path(__file__).with_name("fashion-mnist-12k.h5")
    place = packaged if os.fspath(path) == EMBEDDED else Path(path)
    if not os.path.isfile(place):
        found = "not a file" if os.path.exists(place) else "no such file"
        raise UserError(
            f"{place}: {found}; give an image file made by 'python -m mpicnn.data prepare',"
            f" or '{EMBEDDED}' for the packaged one"
        )
    if not os.access(place, os.R_OK):
        raise UserError(f"{place}: may not be read; check its permissions")
    with ExitStack() as opened:
        try:
            raw = opened.enter_context(RawFile(place))
            file = opened.enter_context(h5py.File(raw, "r"))
        except OSError as error:
            raise UserError(
                f"{place}: expected a whole HDF5 file ({one_line(error)});"
                " make it with 'python -m mpicnn.data prepare'"
            ) from error
        try:
            dataset = _checked(Checker(file, raw, place))
        except DAMAGED as error:
            raise UserError(
                f"{place}: damaged HDF5 file ({one_line(error)}); make it anew"
            ) from error
        opened.pop_all()
        return dataset


def _checked(checker: Checker) -> Dataset:
    checker.format()
    classes = checker.classes()
    images = check_equal_images(checker)
    channels, height, width = (int(n) for n in images[SPLITS[0]].shape[1:])
    shape = (channels, height, width)
    splits = {
        name: Split(
            name,
            str(checker.path),
            shape,
            checker.labels(name, len(data), len(classes)),
            open_store(data, checker.raw.fileno()),
            checker.digests(name, data.shape),
        )
        for name, data in images.items()
    }
    mean, std = (checker.per_channel(name, channels) for name in ("mean", "std"))
    opened = (checker.file, checker.raw)
    return Dataset(str(checker.path), shape, classes, mean, std, splits, *opened)


def one_line(error: BaseException) -> str:
    """Return what `error` says on one line."""
    return " ".join(str(error).split())
