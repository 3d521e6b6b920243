"""What the images to prepare come from, whatever the kind: labels known, images on request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mpicnn.data.check import wrong_names, wrong_shape
from mpicnn.data.layout import Array, ImageShape, Index, class_counts, some
from mpicnn.errors import UserError


@dataclass
class Found:
    """Note what was found while images were read.

    `broken` says why files give no image, by their paths relative to the source; `transparent` is
    how many images had a transparent ground.
    """

    broken: dict[str, str] = field(default_factory=dict)
    transparent: int = 0


class Source(Protocol):
    """Hold the labels of each split, int64 (n,), and give its images."""

    @property
    def where(self) -> str:
        """Return the path that messages name."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the labels."""
        ...

    @property
    def shape(self) -> ImageShape:
        """Return the shape (c, h, w) of every image."""
        ...

    @property
    def labels(self) -> dict[str, Index]:
        """Return the labels by split."""
        ...

    def read(self, split: str, indices: Index, found: Found) -> Array:
        """Return the images of `split` at `indices`: uint8 (len(indices), c, h, w).

        Files that give no image are noted in `found`; what stands in their place means nothing.
        Raises UserError where an image is not as the others.
        """
        ...

    def account(self, found: Found, count: int) -> list[str]:
        """Return lines that say how `count` images were read, and what was skipped."""
        ...


@dataclass(frozen=True)
class ArraySource:
    """Hold all images of a small data set in memory: uint8 (n, c, h, w) by split."""

    where: str
    classes: tuple[str, ...]
    labels: dict[str, Index]
    images: dict[str, Array]

    @property
    def shape(self) -> ImageShape:
        """Return the shape (c, h, w) of every image."""
        c, h, w = self.images["train"].shape[1:]
        return c, h, w

    def read(self, split: str, indices: Index, found: Found) -> Array:
        """Return the images of `split` at `indices`."""
        return self.images[split][indices]

    def account(self, found: Found, count: int) -> list[str]:
        """Return nothing: all images are read, and there is nothing beside them."""
        return []


def check_source(source: Source) -> None:
    """Raise UserError where a split is empty or a class has no training images."""
    for split, labels in source.labels.items():
        if not labels.size:
            raise UserError(f"{source.where}: no {split} images; expected at least one")
    if wrong := wrong_names(source.classes):
        raise UserError(f"{source.where}: class names: expected {wrong}")
    if wrong := wrong_shape(source.shape):
        raise UserError(f"{source.where}: expected {wrong}, found {source.shape}")
    counts = class_counts(source.labels["train"], len(source.classes))
    empty = [name for name, count in zip(source.classes, counts, strict=True) if not count]
    if empty:
        raise UserError(
            f"{source.where}: no training images of {some(empty)};"
            " expected at least one of every class"
        )


def first_per_class(source: Source, split: str, count: int) -> Index:
    """Return the places of the first `count` images of every class, in their original order.

    Raises UserError where a class has fewer.
    """
    labels = source.labels[split]
    counts = class_counts(labels, len(source.classes))
    if counts.min() < count:
        least = int(counts.argmin())
        raise UserError(
            f"{source.where}: {counts[least]} {split} images of {source.classes[least]};"
            f" --per-class asks for {count}"
        )
    firsts = [np.flatnonzero(labels == k)[:count] for k in range(len(source.classes))]
    return np.sort(np.concatenate(firsts))
