"""Draw images for validation from those for training: by class, and by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpicnn import rng
from mpicnn.data.layout import Index, class_counts
from mpicnn.division.placement import weighted_bounds
from mpicnn.errors import UserError


@dataclass(frozen=True)
class Draw:
    """Say what to draw: a whole number of images in all, or a fraction of each class, as text."""

    amount: str
    seed: int = 0


def drawn(labels: Index, classes: Sequence[str], draw: Draw) -> Index:
    """Return the places of the images drawn from those of `labels` (n,), in ascending order.

    Every class gives at least one, and keeps at least one: a whole number is divided in the
    proportions of the classes by largest remainders. Raises UserError where that cannot be.
    """
    counts = class_counts(labels, len(classes))
    if int(counts.min()) < 2:
        name = classes[int(counts.argmin())]
        raise UserError(
            f"validation {draw.amount}: {name} has one training image; expected two or more of "
            "every class"
        )
    wanted = amounts(counts, draw.amount)
    full = np.flatnonzero(wanted >= counts)
    if full.size:
        raise UserError(
            f"validation {draw.amount}: no training images of {classes[full[0]]} would be left: "
            f"it has {counts[full[0]]} of {len(labels)}; expected fewer"
        )
    parts = []
    for label, count in enumerate(wanted.tolist()):
        # A stream of its own: the first ones, by label, draw the images for testing.
        order = rng.permutation(int(counts[label]), draw.seed, len(classes) + label)
        parts.append(np.flatnonzero(labels == label)[order[:count]])
    return np.sort(np.concatenate(parts))


def amounts(counts: Index, amount: str) -> Index:
    """Return how many images to draw of each class: int64 (classes,)."""
    if not amount.isdecimal():
        return np.clip(np.rint(float(amount) * counts), 1, counts - 1).astype(np.int64)
    if int(amount) < len(counts):
        raise UserError(
            f"validation {amount}: expected at least {len(counts)}, one image of every class"
        )
    return np.diff(weighted_bounds(int(amount), counts.tolist(), least=1))
