"""What a run leaves to be plotted: metrics.csv, a row per log interval and per test."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Self

from mpicnn.errors import UserError
from mpicnn.run.directory import write_text
from mpicnn.run.picture import figure, save


@dataclass(frozen=True)
class MetricsRow:
    """Say how a run stood after `step` steps.

    `epoch` counts passes over the training data, `seconds` the time since the run was started or
    resumed; `split` is "train" (means over the steps since the row before), "validation" or "test"
    (of the network after `step`); `top1` and `top5` are fractions; `rate` is the learning rate of
    the last step.
    """

    step: int
    epoch: float
    seconds: float
    split: str
    loss: float
    top1: float
    top5: float
    images_per_second: float
    rate: float


COLUMNS = tuple(each.name for each in fields(MetricsRow))


class Metrics:
    """Write rows to a CSV file, line by line: a run that is killed leaves all but the last."""

    def __init__(self, path: Path, resumed: int | None = None) -> None:
        """Begin a file, or go on with one after step `resumed`: later rows are dropped.

        One that cannot be read is set aside under the name `damaged`, and a new one begun.
        Raises UserError where it cannot be written.
        """
        self.damaged: Path | None = None
        try:
            kept = [] if resumed is None else self._rows_before(path, resumed)
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(asdict(row).values() for row in kept)
            # Whole or not at all: the rows before are all there is to tell of the run before.
            write_text(path, text.getvalue())
            self._file = path.open("a", buffering=1, newline="", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        self._path = path
        self._tests = {(row.step, row.split) for row in kept if row.split != "train"}
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _rows_before(self, path: Path, resumed: int) -> list[MetricsRow]:
        """Return the rows up to step `resumed`; set a file that is damaged aside."""
        if not path.exists():
            return []
        try:
            return [row for row in read_rows(path) if row.step <= resumed]
        except UserError:
            names = (path.with_name(f"{path.stem}-damaged-{n}{path.suffix}") for n in count(1))
            self.damaged = next(name for name in names if not name.exists())
            path.rename(self.damaged)
            return []

    def write(self, row: MetricsRow) -> None:
        """Add a row, unless the file already had that test when the run was resumed.

        Raises UserError where that fails, as on a full disk.
        """
        if (row.step, row.split) in self._tests:
            return
        try:
            self._writer.writerow(asdict(row).values())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_rows(path: Path) -> list[MetricsRow]:
    """Return the rows of a metrics.csv, without a last one that a crash cut off.

    Raises UserError where there is no such file or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a run's metrics") from None
    except UnicodeDecodeError:
        text = ""
    header, *lines = csv.reader(text[: text.rfind("\n") + 1].splitlines() or [""])
    if tuple(header) != COLUMNS:
        raise UserError(f"{path}: not a run's metrics; expected columns {','.join(COLUMNS)}")
    try:
        return [_row(*line) for line in lines]
    except (TypeError, ValueError):
        raise UserError(f"{path}: not a run's metrics; a row does not fit the columns") from None


def _row(step: str, epoch: str, seconds: str, split: str, *others: str) -> MetricsRow:
    return MetricsRow(int(step), float(epoch), float(seconds), split, *map(float, others))


def plot_run(run_dir: Path) -> Path:
    """Draw loss and accuracy of a run over its epochs into curves.png; return its path.

    Raises UserError without matplotlib, and for a directory without metrics.
    """
    rows = read_rows(run_dir / "metrics.csv")
    drawn = figure("curves", 9, 4)
    chosen = any(row.split == "validation" for row in rows)
    for axes, what in zip(drawn.subplots(1, 2), ("loss", "top1"), strict=True):
        for split, style in (("train", "-"), ("validation", "o-"), ("test", "o-")):
            of_split = [row for row in rows if row.split == split]
            if not of_split:
                continue
            if split == "test" and chosen:  # of the best network each time: no curve
                style = "o"
            x = [row.epoch for row in of_split]
            axes.plot(x, [getattr(row, what) for row in of_split], style, ms=3, label=split)
        axes.set(xlabel="epoch", ylabel={"loss": "loss", "top1": "top-1 accuracy"}[what])
        axes.grid(alpha=0.3)
        axes.legend()
    path = run_dir / "curves.png"
    save(drawn, path)
    return path
