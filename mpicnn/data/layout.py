"""The names, types and limits of an image file (see docs/data-format.md): one place for all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Index = NDArray[np.int64]
ImageShape = tuple[int, int, int]

FORMAT = "mpicnn-images"
VERSION = 1
SPLITS = ("train", "validation", "test")
"""In the order in which they are written and shown."""
VALIDATION = "validation"
"""The one that may be missing."""

# A byte of a deflate stream stands for at most 1032 bytes of data (RFC 1951: a length code of
# 258 bytes in two bits), so whatever claims to unpack to more than that is not what it says.
MOST_INFLATION = 1032

# Of labels, names and digests, which are all looked at when a file is opened.
MOST_CHUNKS = 4096
# Larger than any sensible chunk; HDF5 needs a whole one in memory to read a single row of it.
MOST_CHUNK_BYTES = 64 * 2**20

# Compressed (or chunked) splits up to this size are unpacked once and kept by each rank.
MOST_MEMORY_BYTES = 256 * 2**20

# What data other than images may unpack to: a small file must not fill the memory.
MOST_UNPACKED_BYTES = 16 * 2**20

# Bounds of what a file may say, so that sizes computed from them stay sensible.
MOST_IMAGES = 2**30
MOST_SIDE = 2**16
MOST_IMAGE_BYTES = 2**30

# Of one class name, characters, and of all of them as JSON, which every checkpoint holds.
MOST_NAME = 1000
MOST_NAMES_BYTES = 2 * 2**20

# Of the images that one digest is of: few digests, and a check of some of them is quick.
DIGEST_BYTES = 2**20

# Of the images that one compressed chunk holds: beyond this the file hardly gets smaller.
CHUNK_BYTES = 256 * 2**10


def class_counts(labels: Index, classes: int) -> Index:
    """Return how many of `labels` (each in 0 … classes-1) name each class, int64 (classes,)."""
    return np.bincount(labels, minlength=classes).astype(np.int64)


def some(names: Iterable[str], most: int = 5) -> str:
    """Return the first `most` of `names` in one phrase, for a message of one line."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
