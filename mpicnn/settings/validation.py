"""Check the values of settings, and say in one line what is wrong with one."""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Mapping
from dataclasses import Field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from mpicnn.documents import read_json
from mpicnn.errors import UserError
from mpicnn.settings.option import Options, kebab
from mpicnn.text import one_of

AnyOptions = TypeVar("AnyOptions", bound=Options)

LIMITS = {
    "gt": ("above", operator.gt),
    "ge": ("of at least", operator.ge),
    "lt": ("below", operator.lt),
    "le": ("of at most", operator.le),
}
MOST = 10**18
"""No number is larger where a setting has no bound of its own: what follows from it is finite."""

NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def checked(kind: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """Return settings of `kind` from Python values by field name.

    Raises UserError for a name or a value that cannot be.
    """
    options = {each.name: each for _, each in kind.options()}
    types = get_type_hints(kind)
    found = {}
    for name, value in values.items():
        if name not in options:
            raise UserError(f"{name}: no such setting{nearest(name, '', options)}")
        listed = list(value) if isinstance(value, tuple) else value
        try:
            found[name] = kept(listed, options[name], types[name])
        except ValueError as error:
            raise UserError(f"{name} = {wrong(value, error)}") from None
    return kind(**found)


def saved(kind: type[AnyOptions], text: str) -> AnyOptions:
    """Return what `Options.to_json` wrote into a file that may come from anybody.

    Defaults stand for what it did not know. Raises UserError for settings that this version does
    not know, or that cannot be.
    """
    try:
        values = read_json(text)
    except ValueError as error:
        raise UserError(f"settings: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"settings: {reprlib.repr(values)}, expected a value for each name")
    kind.check_known(values)
    return checked(kind, values)


def wrong(value: object, error: ValueError) -> str:
    """Return a value that cannot be, and what was expected, for an error of `kept`."""
    return f"{reprlib.repr(value)}: expected {error}"


def kept(value: Any, each: Field[Any], hint: Any) -> Any:
    """Return `value`, text of a flag or as TOML has it, as its option keeps it.

    Raises ValueError with what was expected.
    """
    check = each.metadata.get("check")
    try:
        if get_origin(hint) is tuple:
            value = _items(value, get_args(hint)[0])
        elif get_origin(hint) is Literal:
            _demand(value in get_args(hint))
        elif hint in (int, float):
            value = _number(hint, value)
            limits = ((meets, each.metadata.get(key)) for key, (_, meets) in LIMITS.items())
            _demand(all(meets(value, limit) for meets, limit in limits if limit is not None))
        elif check is None:
            _demand(isinstance(value, hint))
    except ValueError:
        raise ValueError(expected(each, hint)) from None
    if hint in (int, float) and value > (most := each.metadata.get("le", MOST)):
        raise ValueError(f"{NOUNS[hint]} of at most {most}: {each.metadata['description']}")
    return check(value) if check else value


def _items(value: Any, kind: type) -> tuple[Any, ...]:
    """Return a list, or text that joins its items by commas, as a tuple."""
    _demand(isinstance(value, list))
    return tuple(part if kind is str and isinstance(part, str) else _number(kind, part)
                 for part in value)  # fmt: skip


def _number(kind: type, value: Any) -> Any:
    """Return text or a number as a finite number of `kind`."""
    _demand(isinstance(value, int | float | str) and not isinstance(value, bool))
    _demand(kind is not str and (not isinstance(value, str) or value.isascii()))
    try:
        number = kind(value)
        _demand(math.isfinite(number) and (number == value or isinstance(value, str)))
    except OverflowError:
        raise ValueError from None
    return number


def _demand(met: bool) -> None:
    if not met:
        raise ValueError


def expected(each: Field[Any], hint: Any) -> str:
    """Return what an option should have been, from its type and bounds."""
    about = each.metadata
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    noun = "a list" if get_origin(hint) is tuple else NOUNS[hint]
    limits = " and ".join(
        f"{word} {about[key]}" for key, (word, _) in LIMITS.items() if key in about
    )
    return f"{noun} {limits}".rstrip() + f": {about['description']}"


def nearest(name: str, prefix: str, options: Mapping[str, Field[Any]]) -> str:
    """Return a hint at the option that was probably meant, with what it is."""
    import difflib  # where something is wrong alone

    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), options, 1)
    if not close:
        return " (see --help)"
    about = options[close[0]].metadata["description"]
    see = " (see --help)" if prefix else ""
    return f"; did you mean {prefix}{kebab(close[0])} ({about})?{see}"
