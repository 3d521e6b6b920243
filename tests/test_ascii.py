"""Terminals and locales that know ASCII alone: everything is shown, with escapes if need be."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import mpi_jobs
import pytest
from data_samples import picture

from mpicnn.data.file import open_dataset
from mpicnn.job.output import escape_what_cannot_be_shown, say
from mpicnn.settings.definitions import COMMANDS, parse

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}


def test_help_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in COMMANDS:
        stream = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
        monkeypatch.setattr(sys, "stdout", stream)
        escape_what_cannot_be_shown()
        with pytest.raises(SystemExit):
            parse(["--help"], command, {})
        stream.seek(0)
        assert f"mpicnn.{command}" in stream.read()


def test_lines_are_written_as_the_stream_can(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for encoding, shown in (
        ("utf-8", "\u00e9".encode()),
        ("latin-1", b"\xe9"),
        ("ascii", rb"\xe9"),
    ):
        monkeypatch.setattr(sys, "__stdout__", io.TextIOWrapper(io.BytesIO(), encoding))
        say(None, "\u00e9", fd=1)
        assert capfdbinary.readouterr().out == shown + b"\n"


def test_prepare_tells_of_classes_whose_names_are_not_ascii(tmp_path: Path) -> None:
    """The locale has Python take names for ASCII; that the classes' are UTF-8 is still known."""
    for k in range(2):
        picture(tmp_path / f"in/caf\u00e9/{k}.png", 6, 5, 3)
    out = tmp_path / "a.h5"
    start = ("-m", "mpicnn.data", "prepare", "folder", tmp_path / "in", out)
    job = mpi_jobs.run(0, *start, **ASCII)
    assert (job.code, job.err) == (0, "")
    assert r"    0         1         1  caf\xe9" in job.out
    with open_dataset(out) as data:
        assert data.classes == ("caf\u00e9",)
    job = mpi_jobs.run(0, "-m", "mpicnn.data", "info", "\u00e9.h5", **ASCII)
    assert job.code == 2
    assert job.err == "mpicnn: error: command line: not text in ASCII; set PYTHONUTF8=1\n"
