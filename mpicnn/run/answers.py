"""What a trained network sees in images, as lines, CSV or JSON: written as it comes, always whole.

Used on one rank; nothing here communicates.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from mpicnn.errors import UserError, escaped
from mpicnn.job.output import write_all

STDOUT = 1
COLUMNS = ("file", "place", "class", "probability", "error")


@dataclass(frozen=True)
class Answer:
    """Say what is seen in one image: classes and probabilities, the highest first, or an `error`.

    The error is why the file gave no image.
    """

    file: str
    seen: tuple[tuple[str, float], ...] = ()
    error: str = ""


def text_lines(answers: Sequence[Answer]) -> str:
    """Return a line for each image that could be read."""
    return "".join(
        f"{escaped(each.file)}: "
        + "  ".join(f"{escaped(name)} {100 * odds:.1f} %" for name, odds in each.seen)
        + "\n"
        for each in answers
        if not each.error
    )


def csv_rows(answers: Sequence[Answer]) -> str:
    """Return a row for each image and class, and one for each image that could not be read."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    for each in answers:
        if each.error:
            writer.writerow((each.file, "", "", "", each.error))
        for place, (name, odds) in enumerate(each.seen, start=1):
            writer.writerow((each.file, place, name, f"{odds:.6g}", ""))
    return text.getvalue()


def json_objects(answers: Sequence[Answer]) -> str:
    """Return an object for each image, joined by commas."""
    return ",\n".join(
        json.dumps(
            {"file": each.file, "error": each.error}
            if each.error
            else {
                "file": each.file,
                "classes": [{"class": n, "probability": float(f"{p:.6g}")} for n, p in each.seen],
            }
        )
        for each in answers
    )


@dataclass(frozen=True)
class Format:
    """Say how answers become text: what opens it, stands between two batches, and closes it."""

    text: Callable[[Sequence[Answer]], str]
    opening: str = ""
    between: str = ""
    closing: str = ""


FORMATS = {
    "text": Format(text_lines),
    "csv": Format(csv_rows, opening=",".join(COLUMNS) + "\n"),
    "json": Format(json_objects, opening="[\n", between=",\n", closing="\n]\n"),
}


class Answers:
    """Write answers to a new file, or to standard output without a `path`; a context manager.

    A file is whole after each `add`, whatever happens then: the next answers replace what closes
    it. Names that cannot be encoded are escaped. Raises UserError where the file cannot be written,
    and where it exists, unless it is to be overwritten.
    """

    def __init__(self, form: str, path: str = "", overwrite: bool = False) -> None:
        self._form, self._path, self._overwrite = FORMATS[form], path, overwrite
        self._fd, self._end, self._count = STDOUT, 0, 0
        # Lines are for a terminal, and as it wants them; CSV and JSON are for software.
        shown = sys.__stdout__ if form == "text" and not path else None
        self._encoding = shown.encoding if shown else "utf-8"

    def __enter__(self) -> Self:
        if self._path:
            how = os.O_TRUNC if self._overwrite else os.O_EXCL
            try:
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | how, 0o666)
            except FileExistsError:
                raise UserError(
                    f"output {self._path}: exists already; give --overwrite, or another name"
                ) from None
            except OSError as error:
                raise self._failure(error) from None
        self._write(self._form.opening)
        return self

    def __exit__(self, *_: object) -> None:
        if self._path:
            try:
                os.close(self._fd)
            except OSError as error:  # some file systems tell only then that there is no room
                raise self._failure(error) from None
        else:
            write_all(STDOUT, self._form.closing.encode())

    def add(self, answers: Sequence[Answer]) -> None:
        """Write the next answers. Raises UserError where that fails, as on a full disk."""
        self._write((self._form.between if self._count else "") + self._form.text(answers))
        self._count += len(answers)

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, "backslashreplace")
        closing = self._form.closing.encode()
        if not self._path:
            write_all(STDOUT, data)
            return
        try:
            write_all(self._fd, data + closing, self._end)
        except OSError as error:
            with suppress(OSError):  # back to what was whole
                os.ftruncate(self._fd, self._end)
                os.pwrite(self._fd, closing, self._end)
            raise self._failure(error) from None
        self._end += len(data)

    def _failure(self, error: OSError) -> UserError:
        done = f"; the first {self._count} answers are there" if self._count else ""
        return UserError(f"output {self._path}: cannot be written: {error.strerror}{done}")
