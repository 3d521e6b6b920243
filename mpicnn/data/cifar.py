"""Read the binary versions of CIFAR-10 and CIFAR-100 (Krizhevsky 2009)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpicnn.data.check import wrong_names
from mpicnn.data.layout import MOST_NAMES_BYTES, Array, Index
from mpicnn.data.source import ArraySource
from mpicnn.errors import UserError

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
MOST_BYTES = 2**30  # of a file: the largest of the archives has 154 million


@dataclass(frozen=True)
class Version:
    """Say where a version keeps what: files by split, names, label bytes before each image.

    The last label byte is the one used (CIFAR-100 has the coarse label first). `title` is what the
    data set is called, `archive` where its binary version comes from.
    """

    title: str
    archive: str
    files: dict[str, Sequence[str]]
    names: str
    classes: int
    label_bytes: int


CIFAR10 = Version(
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    "batches.meta.txt",
    10,
    1,
)
CIFAR100 = Version(
    "CIFAR-100",
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    {"train": ["train.bin"], "test": ["test.bin"]},
    "fine_label_names.txt",
    100,
    2,
)

# In the versions for Python (pickles) and Matlab, beside data in files of other names.
OTHER_VERSIONS = ("batches.meta", "meta", "batches.meta.mat", "meta.mat")


def open_cifar(directory: Path, version: Version) -> ArraySource:
    """Return the images and (fine) labels of a directory as unpacked from the archive.

    Raises UserError for a file that is missing, cut short or has a label that is no class.
    """
    path = directory / version.names
    if not os.path.exists(path):
        raise UserError(f"{directory}: {explained(directory, version)}")
    text = read_bytes(path, MOST_NAMES_BYTES).decode(errors="replace")
    names = tuple(name for line in text.split("\n") if (name := line.strip()))
    if len(names) != version.classes:
        raise UserError(f"{path}: {len(names)} names; expected {version.classes}")
    if wrong := wrong_names(names):
        raise UserError(f"{path}: expected {wrong}")
    images, labels = {}, {}
    for split, files in version.files.items():
        parts = [read_records(directory / file, version) for file in files]
        images[split] = np.concatenate([part[0] for part in parts])
        labels[split] = np.concatenate([part[1] for part in parts])
    return ArraySource(str(directory), names, labels, images)


def explained(directory: Path, version: Version) -> str:
    """Return what a directory is instead of the unpacked binary version, and where to get that."""
    expected = f"expected the binary version of {version.title}, unpacked: {version.archive}"
    if os.path.isfile(directory):
        return f"a file; {expected}"
    if not os.path.isdir(directory):
        return f"no such directory; {expected}"
    if any(os.path.exists(directory / name) for name in OTHER_VERSIONS):
        return f"the version for Python or Matlab; {expected}"
    below = sorted(path.parent.name for path in directory.glob(f"*/{version.names}"))
    return f"has no {version.names}; {f'give {directory / below[0]}' if below else expected}"


def read_records(path: Path, version: Version) -> tuple[Array, Index]:
    """Return the images, uint8 (n, 3, 32, 32), and labels, int64 (n,), of one file."""
    data = read_bytes(path, MOST_BYTES)
    record = version.label_bytes + PIXELS
    if not data or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes; expected records of {record} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = records[:, version.label_bytes - 1].astype(np.int64)
    if labels.max() >= version.classes:
        raise UserError(f"{path}: label {labels.max()}; expected 0 to {version.classes - 1}")
    return records[:, version.label_bytes :].reshape(-1, *SHAPE), labels


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a file; raise UserError where it cannot be read or has over `most`."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: not a regular file")
    try:
        if path.stat().st_size > most:
            raise UserError(f"{path}: {path.stat().st_size} bytes; expected at most {most}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror})") from error
