"""Which classes a network takes for which: by class, as a matrix, as CSV and as a picture.

Used on one rank; nothing here communicates.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpicnn.data.layout import Array, Index, class_counts
from mpicnn.errors import escaped
from mpicnn.run.directory import write_text
from mpicnn.run.picture import figure, save
from mpicnn.text import align

MOST_SHOWN = 20
"""With more classes, a matrix is too wide for a terminal."""

MOST_NAMED = 60
"""With more classes, their names would overlap in a picture."""


@dataclass(frozen=True)
class Confusion:
    """Hold the true class of every image and the one seen in it: int64 (n,) each."""

    classes: Sequence[str]
    labels: Index
    guesses: Index

    def matrix(self) -> Index:
        """Return how many images of each class (rows) are taken for each (columns)."""
        k = len(self.classes)
        return class_counts(self.labels * k + self.guesses, k * k).reshape(k, k)

    def by_class(self) -> list[str]:
        """Return a table of precision, recall and number of images of every class.

        Precision is the part of the images taken for a class that are of it, recall the part of
        the images of a class that are taken for it; "-" where there are none.
        """
        k = len(self.classes)
        right = class_counts(self.labels[self.labels == self.guesses], k)
        taken, images = class_counts(self.guesses, k), class_counts(self.labels, k)
        rows = [["label", "precision", "recall", "images"]]
        rows += [
            [str(i), _percent(right[i], taken[i]), _percent(right[i], images[i]), str(images[i])]
            for i in range(k)
        ]
        names = ["class", *map(escaped, self.classes)]
        return [f"{line}  {name}" for line, name in zip(align(rows, 0), names, strict=True)]

    def table(self) -> list[str]:
        """Return the matrix as text, for few classes; else where to get it."""
        if len(self.classes) > MOST_SHOWN:
            return [
                f"{len(self.classes)} classes: for the matrix, --confusion FILE.csv or FILE.png"
            ]
        numbers = [str(label) for label in range(len(self.classes))]
        rows = [["", *numbers]]
        rows += [
            [n, *map(str, row)] for n, row in zip(numbers, self.matrix().tolist(), strict=True)
        ]
        return ["images of a class (rows) taken for a class (columns), by label", *align(rows, 0)]

    def write(self, path: Path) -> None:
        """Write the matrix to a file: CSV or a picture (PNG), by its ending.

        Raises UserError where it cannot be written, and without matplotlib for a picture.
        """
        if path.suffix.lower() == ".csv":
            write_text(path, self.csv())
        else:
            self.draw(path)

    def csv(self) -> str:
        """Return the matrix as CSV: a row and a column for each class, the true ones in rows."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("class", *self.classes))
        for name, row in zip(self.classes, self.matrix().tolist(), strict=True):
            writer.writerow((name, *row))
        return text.getvalue()

    def draw(self, path: Path) -> None:
        """Draw the matrix: each row in parts of its class's images, with numbers if they fit."""
        k, matrix = len(self.classes), self.matrix()
        side = min(16.0, 3.0 + 0.45 * min(k, MOST_NAMED) / (1 if k <= MOST_SHOWN else 2))
        drawn = figure("pictures", side, side)
        axes = drawn.subplots()
        parts = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
        drawn.colorbar(image, label="part of the images of the true class", shrink=0.7)
        axes.set(xlabel="class seen", ylabel="true class")
        if k <= MOST_NAMED:
            # names are no formulas, whatever they hold
            names = [escaped(name) for name in self.classes]
            axes.set_xticks(range(k), names, rotation=90, parse_math=False)
            axes.set_yticks(range(k), names, parse_math=False)
        if k <= MOST_SHOWN:
            for (row, column), count in np.ndenumerate(matrix):
                dark = "white" if parts[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", size=7, color=dark)
        save(drawn, path)


def _percent(part: Array, whole: Array) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"
