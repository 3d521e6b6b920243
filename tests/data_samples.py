"""Small image files, and the arrays in them, for the tests of mpicnn.data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpicnn.data.write import writing

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
) -> Sample:
    """Write a file of random images."""
    draw = np.random.default_rng(7)
    counts = {"train": train, "test": test}
    images = {s: draw.integers(0, 256, (n, *shape), np.uint8) for s, n in counts.items()}
    labels = {s: draw.integers(0, len(CLASSES), n) for s, n in counts.items()}
    with writing(path, CLASSES, shape, labels, gzip) as writer:
        for split, data in images.items():
            # In two pieces: the second must go where the first ended.
            writer.append(split, data[:2])
            writer.append(split, data[2:])
    return Sample(path, images, labels)


def replace(path: Path, name: str, **how: Any) -> None:
    """Put another dataset in the place of `name`, as h5py.create_dataset makes it from `how`."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **how)
