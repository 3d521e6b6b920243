"""Find image files in a directory for each class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpicnn import rng
from mpicnn.data.images import ENDINGS, Decoding, decode
from mpicnn.data.layout import SPLITS, Array, ImageShape, Index, some
from mpicnn.errors import UserError

DEFAULT_TEST_FRACTION = 0.1


@dataclass(frozen=True)
class FolderSource:
    """Hold the paths of the image files of each split, relative to the directory `where`."""

    where: str
    classes: tuple[str, ...]
    labels: dict[str, Index]
    paths: dict[str, list[str]]
    shape: ImageShape
    decoding: Decoding

    def read(self, split: str, indices: Index) -> Array:
        """Return the decoded images at `indices`: uint8 (len(indices), c, h, w)."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        for image, index in zip(out, indices.tolist(), strict=True):
            path = Path(self.where, self.paths[split][index])
            found = decode(path, self.decoding)
            if found.shape != self.shape:
                raise UserError(
                    f"{path}: {found.shape[1]} x {found.shape[2]} pixels; expected"
                    f" {self.shape[1]} x {self.shape[2]} as in the first file; give --size"
                )
            image[...] = found
        return out


def open_folder(
    root: Path, decoding: Decoding, test_fraction: float | None = None, seed: int = 0
) -> FolderSource:
    """Return the files of ROOT/train/CLASS/… and ROOT/test/CLASS/…, or of ROOT/CLASS/….

    Without ROOT/test, ROOT/val is for testing, as ImageNet is often laid out. Without either,
    `test_fraction` of every class (rounded, at least one image, never all), drawn with `seed`, is.
    Labels are places in the sorted class names; directories in classes are searched too. Raises
    UserError for classes without images, for unlike classes in the two splits, and for
    `test_fraction` where there are images for testing already.
    """
    tests = next((name for name in ("test", "val") if (root / name).is_dir()), None)
    if tests and (root / "train").is_dir():
        if test_fraction is not None:
            raise UserError(f"{root}: has {tests}/; --test-fraction is for a directory without")
        places = dict(zip(SPLITS, ("train", tests), strict=True))
        files = {split: class_files(root, place) for split, place in places.items()}
        odd = set(files["train"]) ^ set(files["test"])
        if odd:
            raise UserError(f"{root}: only one of train and {tests} has {some(sorted(odd))}")
    else:
        fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
        files = divide(root, class_files(root), fraction, seed)
    classes = tuple(sorted(files["train"]))
    paths = {split: [p for name in classes for p in files[split][name]] for split in SPLITS}
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(files[split][name]) for name in classes])
        for split in SPLITS
    }
    c, h, w = decode(root / paths["train"][0], decoding).shape
    return FolderSource(str(root), classes, labels, paths, (c, h, w), decoding)


def class_files(root: Path, place: str = "") -> dict[str, list[str]]:
    """Return the sorted paths, relative to `root`, of the image files of every class in `place`.

    Hidden files and directories, and files without the suffix of an image, are not looked at.
    """
    within = root / place
    try:
        names = sorted(e.name for e in os.scandir(within) if e.is_dir() and e.name[0] != ".")
    except OSError as error:
        raise UserError(f"{within}: could not be read ({error.strerror})") from error
    if not names:
        raise UserError(f"{within}: expected a directory for each class, found none")
    files = {}
    for name in names:
        files[name] = sorted(
            str((Path(directory) / file).relative_to(root))
            for directory, _, found in os.walk(within / name)
            for file in found
            if file[0] != "." and Path(file).suffix.lower() in ENDINGS
        )
        if not files[name]:
            raise UserError(f"{within / name}: no images; expected {', '.join(sorted(ENDINGS))}")
    return files


def divide(
    root: Path, files: dict[str, list[str]], fraction: float, seed: int
) -> dict[str, dict[str, list[str]]]:
    """Return the files for training and for testing, each class divided by itself."""
    parts: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for place, (name, paths) in enumerate(sorted(files.items())):
        if len(paths) < 2:
            raise UserError(f"{root / name}: one image; expected two or more, to train and to test")
        count = min(max(round(fraction * len(paths)), 1), len(paths) - 1)
        chosen = set(rng.permutation(len(paths), seed, place)[:count].tolist())
        parts["test"][name] = [p for i, p in enumerate(paths) if i in chosen]
        parts["train"][name] = [p for i, p in enumerate(paths) if i not in chosen]
    return parts
