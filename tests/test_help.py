"""What `--help` and `--version` say of each command, and of words that begin several."""

from __future__ import annotations

import pytest

from mpicnn.settings import definitions as config
from mpicnn.settings.definitions import COMMANDS, Settings

BEGUN = sorted({" ".join(name.split()[:n]) for name in COMMANDS for n in range(len(name.split()))})
"""Words that begin commands and are none: "", "data", "data prepare"."""


@pytest.mark.parametrize("columns", [80, 100])
def test_help_shows_every_option_and_fits(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config.parse(["--help"], "train", {"COLUMNS": str(columns)})
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= columns
    for group, each in Settings.options():
        assert f"\n{group.heading}:\n" in text
        assert f"\n  --{each.name.replace('_', '-')}" in text


def test_version_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config.parse(["--version"], "train", {})
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("mpicnn ")


def help_of(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        config.parse(["--help"], words, {"COLUMNS": "80"})
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_words_that_begin_commands_say_what_these_are_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = {words: help_of(words, capsys) for words in BEGUN}
    for words, text in shown.items():
        for name in COMMANDS:
            rest = name.removeprefix(words).strip()
            assert (f"\n  {rest} " in text) == name.startswith(words), name
    assert len({text.splitlines()[2] for text in shown.values()}) == len(BEGUN)


def test_usage_says_which_arguments_may_be_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert " RUN IMAGE ... [--option" in help_of("predict", capsys)
    assert " SOURCE OUT [--option" in help_of("data prepare folder", capsys)
