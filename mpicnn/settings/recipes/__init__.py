"""Recipes: whole settings files that come with the package, each called by its name."""

from __future__ import annotations

from pathlib import Path

from mpicnn.errors import UserError
from mpicnn.text import one_of

_HERE = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the recipes, sorted."""
    return sorted(path.stem for path in _HERE.glob("*.toml"))


def or_file(name: str) -> str:
    """Return the path of the file `name`, or else of the recipe of that name.

    A file goes first, so that a recipe of a later version changes nothing where one has a file of
    that name; a directory, such as a run's, does not. Raises UserError where there is neither.
    """
    if name in names() and not Path(name).is_file():
        return str(_HERE / f"{name}.toml")
    if not name or not Path(name).exists():
        raise UserError(
            f"{name!r}: no such file or recipe; expected a TOML file of settings or a recipe: "
            f"{one_of(names())}"
        )
    return name


def text(name: str) -> str:
    """Return the recipe's file as it is. Raises UserError for a name that none has."""
    if name not in names():
        raise UserError(f"{name!r}: no such recipe; expected {one_of(names())}")
    return (_HERE / f"{name}.toml").read_text(encoding="utf-8")


def listed() -> str:
    """Return a line for every recipe: its name, and the first line of its file."""
    firsts = {name: text(name).partition("\n")[0].removeprefix("# ") for name in names()}
    return "".join(f"{name:<18}{first}\n" for name, first in firsts.items())
