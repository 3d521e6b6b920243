"""Image files in a folder for each class, as a source of images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpicnn import rng
from mpicnn.data.images import ENDINGS, Decoding, ImageError, read_picture
from mpicnn.data.layout import Array, ImageShape, Index, some
from mpicnn.data.listing import Skipped, list_images, scan
from mpicnn.data.source import Found
from mpicnn.data.splits import TESTING, VALIDATING, among, check_classes, find_splits
from mpicnn.errors import UserError
from mpicnn.text import counted, listed

DEFAULT_TEST_FRACTION = 0.1

PURPOSES = {"train": "training", "validation": "validation", "test": "testing"}


@dataclass(frozen=True)
class Division:
    """Share the images out among the splits.

    `splits` is empty, "none" or the names of two or three folders (see `splits.find_splits`).
    Without such folders, `fraction` of every class is drawn for testing with `seed`: None for the
    default.
    """

    splits: str = ""
    fraction: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class FolderSource:
    """Hold the paths of the image files of each split, relative to the directory `where`."""

    where: str
    classes: tuple[str, ...]
    labels: dict[str, Index]
    paths: dict[str, list[str]]
    shape: ImageShape
    decoding: Decoding
    division: str
    skipped: Skipped = field(default_factory=Skipped)

    def read(self, split: str, indices: Index, found: Found) -> Array:
        """Return the decoded images at `indices`: uint8 (len(indices), c, h, w).

        Files that give no image are noted in `found`; what stands in their place means nothing.
        Raises UserError where an image has another shape.
        """
        out = np.zeros((len(indices), *self.shape), np.uint8)
        for image, index in zip(out, indices.tolist(), strict=True):
            name = self.paths[split][index]
            path = Path(self.where, name)
            try:
                picture = read_picture(path, self.decoding)
            except ImageError as error:
                found.broken[name] = error.reason
                continue
            shape = picture.pixels.shape
            if shape != self.shape:
                raise UserError(
                    f"{path}: {shape[1]} x {shape[2]} pixels; expected"
                    f" {self.shape[1]} x {self.shape[2]} as in the first file; give --size"
                )
            found.transparent += picture.transparent
            image[...] = picture.pixels
        return out

    def account(self, found: Found, count: int) -> list[str]:
        """Return what was read, and what was skipped and why: `count` images were taken."""
        white = f", {found.transparent} of them transparent: put on white" * (found.transparent > 0)
        lines = [
            f"source  {self.where}: {self.division}",
            f"read    {counted(count, 'image')}{white}",
        ]
        return lines + [f"skipped {line}" for line in self.skipped.lines()]


def open_folder(
    root: Path, decoding: Decoding, division: Division, without: Collection[str] = ()
) -> FolderSource:
    """Return the files of ROOT/train/CLASS/…, ROOT/test/CLASS/… and so on, or of ROOT/CLASS/….

    Where there are no folders for training and testing, part of every class (rounded, at least one
    image, never all) is for testing. Labels are places in the sorted class names. `without` are
    files, relative to `root`, to take for absent. Raises UserError for classes without images, for
    unlike classes in the splits, for folders that are neither classes nor splits, and for a
    fraction where there are images for testing already.
    """
    skipped = Skipped()
    folders, loose = scan(root, "", skipped)
    places = find_splits(root, folders, division.splits)
    if places is None:
        skipped = Skipped()  # the same folder is looked at again
        found = class_files(root, "", skipped, without)
        if not division.splits:
            check_classes(root, found)
        fraction = DEFAULT_TEST_FRACTION if division.fraction is None else division.fraction
        files = divide(root, found, fraction, division.seed)
        origin = f"a folder for each class; {100 * fraction:g} % of each drawn for testing"
    else:
        if division.fraction is not None:
            raise UserError(
                f"{root}: has {places['test']}/; --test-fraction is for a directory without"
            )
        files = split_files(root, places, skipped, without)
        beside = f"beside {listed(places.values())}"
        for name in sorted({*folders, *loose}.difference(places.values())):
            skipped.add(beside, name)
        origin = ", ".join(f"{place}/ for {PURPOSES[split]}" for split, place in places.items())
    classes = tuple(sorted(files["train"]))
    paths = {split: [p for name in classes for p in of[name]] for split, of in files.items()}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(of[name]) for name in classes])
        for split, of in files.items()
    }
    shape = first_shape(root, paths["train"], decoding)
    return FolderSource(str(root), classes, labels, paths, shape, decoding, origin, skipped)


def first_shape(root: Path, paths: Sequence[str], decoding: Decoding) -> ImageShape:
    """Return the shape (c, h, w) of all images: of the first that can be read, if no size is given.

    Raises UserError where none can.
    """
    if decoding.size is not None:
        return (1 if decoding.gray else 3), decoding.size, decoding.size
    failure: ImageError | None = None
    for path in paths:
        try:
            c, h, w = read_picture(root / path, decoding).pixels.shape
            return c, h, w
        except ImageError as error:
            failure = failure or error
    raise UserError(f"none of {counted(len(paths), 'image')} can be read; the first: {failure}")


def split_files(
    root: Path, places: dict[str, str], skipped: Skipped, without: Collection[str]
) -> dict[str, dict[str, list[str]]]:
    """Return the files of every class in the folder of each split."""
    files = {split: class_files(root, place, skipped, without) for split, place in places.items()}
    for split, place in places.items():
        odd = sorted(set(files["train"]) ^ set(files[split]))
        if odd:
            both = f"{places['train']} and {place}"
            raise UserError(
                f"{root}: only one of {both} has {some(odd)}; expected the same classes"
            )
    return files


def class_files(
    root: Path, place: str, skipped: Skipped, without: Collection[str]
) -> dict[str, list[str]]:
    """Return the sorted paths, relative to `root`, of the image files of every class in `place`."""
    folders, loose = scan(root, place, skipped)
    for path in loose:
        skipped.add("outside the folders of classes", path)
    if not folders:
        hint = "; to draw images for testing, give the folder for training as SOURCE"
        raise UserError(
            f"{root / place}: expected a folder for each class, found none"
            f"{hint if among([place], TESTING | VALIDATING) else ''}"
        )
    files: dict[str, list[str]] = {}
    for path in folders:
        name = class_name(root, path)
        if name in files:
            raise UserError(
                f"{root / path}: two folders have this name in different spellings of Unicode; "
                "rename one, or make them one"
            )
        files[name] = [p for p in list_images(root, path, skipped) if p not in without]
        if not files[name]:
            raise UserError(
                f"{root / path}: no images{' that can be read' if without else ''}; "
                f"expected {', '.join(sorted(ENDINGS))}"
            )
    return files


def class_name(root: Path, path: str) -> str:
    """Return the name of a class's folder, composed (NFC): macOS decomposes what is accented.

    Raises UserError for a name that is not UTF-8 or cannot be printed.
    """
    try:
        name = os.fsencode(os.path.basename(path)).decode()
    except UnicodeDecodeError:
        raise UserError(f"{root / path}: its name is not UTF-8; rename the folder") from None
    if not name.isprintable():
        raise UserError(f"{root / path}: its name cannot be printed; rename the folder")
    return unicodedata.normalize("NFC", name)


def divide(
    root: Path, files: dict[str, list[str]], fraction: float, seed: int
) -> dict[str, dict[str, list[str]]]:
    """Return the files for training and for testing, each class divided by itself."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for place, (name, paths) in enumerate(sorted(files.items())):
        if len(paths) < 2:
            raise UserError(f"{root / name}: one image; expected two or more, to train and to test")
        count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
        chosen = set(rng.permutation(len(paths), seed, place)[:count].tolist())
        parts["test"][name] = [p for i, p in enumerate(paths) if i in chosen]
        parts["train"][name] = [p for i, p in enumerate(paths) if i not in chosen]
    return parts
