"""Absurd and hostile input: accepted or refused in one line, in no time, by every parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fuzz
import fuzz_files
import mpi_jobs
import pytest

from mpicnn.documents import read_json, read_toml
from mpicnn.errors import MOST_CHARACTERS, UserError
from mpicnn.settings.definitions import parse


@pytest.mark.parametrize("kind", fuzz_files.PARSERS)
def test_inputs_that_are_nearly_right(kind: str, tmp_path: Path) -> None:
    """A sample of what `bench/faults.py` draws by the thousand."""
    count = 300 if kind in fuzz.TEXTS else 60
    answers = list(fuzz_files.refused(kind, range(count), tmp_path))
    assert {True, False} == set(answers), "all are refused, or none: the sample shows nothing"


@pytest.mark.parametrize("read", [read_toml, read_json])
def test_documents_that_python_gives_up_on(read: Any) -> None:
    opening = "a = " if read is read_toml else ""
    for text, said in (
        (opening + 100_000 * "[" + 100_000 * "]", "nested too deeply"),
        (opening + 5000 * "9", "thousands of digits"),
        (opening + "[", "."),
    ):
        with pytest.raises(ValueError, match=said) as refused:
            read(text)
        assert "\n" not in str(refused.value)


def test_messages_are_one_line_that_any_terminal_shows() -> None:
    assert str(UserError("é: a\nb\x1b[31m\u202e\x00")) == r"é: a\nb\x1b[31m\u202e\x00"
    assert str(UserError(b"caf\xe9".decode("utf-8", "surrogateescape"))) == r"caf\xe9"
    long = str(UserError(f"begin {'x' * 10**6} end"))
    assert (
        len(long) < MOST_CHARACTERS + 10 and long.startswith("begin x") and long.endswith("x end")
    )


@pytest.mark.parametrize(
    ("name", "most"),
    [("evaluate-every", 10**18), ("epochs", 10**18), ("bucket-mb", 10**18), ("threads", 4096)],
)
def test_numbers_have_bounds(name: str, most: int) -> None:
    assert parse([f"--{name}", str(most)], "train", {})
    with pytest.raises(UserError, match=rf"--{name} '1e?[0-9]+': expected .* of at most {most}"):
        parse([f"--{name}", "1099511627776" if name == "threads" else "1e308"], "train", {})


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse(["--run-dir=~/r"], "train", {}).run_dir == "/home/ada/r"
    assert parse(["--run-dir=a~"], "train", {}).run_dir == "a~"


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "a/" * 2048])
def test_a_path_is_no_longer_than_linux_has_them(name: str) -> None:
    for option in ("--data", "--model", "--run-dir", "--plan", "--calibration", "--trace"):
        with pytest.raises(UserError, match=r"expected a path of 4095 bytes and names of 255"):
            parse([f"{option}={name}"], "train", {})
    assert parse([f"--data={'x' * 255}"], "train", {}).data == "x" * 255


REFUSED = {
    "sys.exit() in a network file": (("--model", "leaves.py"), "leaves.py, line 2: SystemExit"),
    "a layer that no machine holds": (("--model", "large.toml"), "numbers, expected at most"),
    "padding that no machine holds": (("--model", "padded.toml"), "numbers, expected at most"),
    "images that no machine holds": (("--pad", 4096, "--crop", 8000), "not enough memory: "),
    "a trace in no directory": (("--trace", "none/t.json"), "none/t.json: no directory"),
    "a trace that is there": (("--trace", "kept.json"), "kept.json: exists already"),
}
FILES = {
    "leaves.py": "import sys\nsys.exit()\n",
    "large.toml": "[[layer]]\ntype = 'flatten'\n[[layer]]\ntype = 'linear'\no = 1000000000000\n"
    "[[layer]]\ntype = 'linear'\no = 'classes'\n",
    "padded.toml": "[[layer]]\ntype = 'conv'\no = 3\nkernel = 3\npadding = 1000000000\n"
    "[[layer]]\ntype = 'flatten'\n[[layer]]\ntype = 'linear'\no = 'classes'\n",
    "kept.json": "kept",
}


@pytest.mark.limit(60)
@pytest.mark.parametrize("case", REFUSED)
def test_a_run_is_refused_before_it_trains(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, said = REFUSED[case]
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    job = mpi_jobs.run(0, "-m", "mpicnn.train", "--threads", 1, *options, seconds=30)
    assert job.code == 2 and said in job.err and job.err.count("\n") == 1, job.err
    assert {name: (tmp_path / name).read_text() for name in FILES} == FILES


@pytest.mark.limit(60)
def test_a_resumed_run_leaves_the_timeline_of_its_first_part(tmp_path: Path) -> None:
    run = ("-m", "mpicnn.train", "--threads", 1, "--run-dir", tmp_path / "run", "--trace",
           tmp_path / "t.json")  # fmt: skip
    assert mpi_jobs.run(0, *run, "--epochs", 0.02, seconds=30).code == 0
    before = (tmp_path / "t.json").read_bytes()
    job = mpi_jobs.run(0, *run, "--epochs", 0.04, "--resume", seconds=30)
    assert job.code == 0 and "t.json: is there already, so no other is made" in job.err
    assert (tmp_path / "t.json").read_bytes() == before
