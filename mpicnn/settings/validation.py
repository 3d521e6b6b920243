"""Check settings by pydantic, and say in one line what is wrong. Imported on one rank only."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, Field
from types import GenericAlias
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ValidationError, create_model
from pydantic import Field as Bounds
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from mpicnn.errors import UserError
from mpicnn.settings.option import Options, kebab
from mpicnn.text import one_of

AnyOptions = TypeVar("AnyOptions", bound=Options)
LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def checked(kind: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """Return settings of `kind` from Python values by field name.

    Raises UserError for a name or a value that cannot be.
    """
    options = {each.name: each for _, each in kind.options()}
    types = get_type_hints(kind)
    for name in values:
        if name not in options:
            raise UserError(f"{name}: no such setting{nearest(name, '', options)}")
    try:
        found = validator(options, types)(**values)
    except ValidationError as error:
        name, what = problem(error, options, types)
        raise UserError(f"{name} = {what}") from None
    return kind(**{name: getattr(found, name) for name in options})


def problem(
    error: ValidationError, options: Mapping[str, Field[Any]], types: Mapping[str, Any]
) -> tuple[str, str]:
    """Return the first setting that is wrong, and its value and what was expected."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    value = reprlib.repr(first["input"])
    return name, f"{value}: expected {expected(first, options[name], types[name])}"


class Sources(BaseSettings):
    """Take values from flags, then from the caller (the file); read nothing else."""

    model_config = SettingsConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        validate_default=False,  # a default may stand for what no user can ask for
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_parse_none_str="\0",  # what no argument can be: "null" is a name like any other
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def validator(options: Mapping[str, Field[Any]], types: Mapping[str, Any]) -> type[Sources]:
    """Return the pydantic model that checks `options`."""
    definitions: dict[str, Any] = {}
    for name, each in options.items():
        hint, about = types[name], each.metadata
        if get_origin(hint) is tuple:  # flags that may be given several times want a list
            check = about.get("check", tuple)
            hint = Annotated[GenericAlias(list, get_args(hint)[:1]), AfterValidator(check)]
        elif "check" in about:
            hint = Annotated[hint, BeforeValidator(about["check"])]
        elif hint in (int, float):
            bounds = {key: about[key] for key in LIMITS if key in about}
            hint = Annotated[hint, BeforeValidator(no_truth), Bounds(**bounds)]
        definitions[name] = (hint, ... if each.default is MISSING else each.default)
    return create_model("Sources", __base__=Sources, **definitions)


def no_truth(value: object) -> object:
    """Return `value` unless it is true or false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError
    return value


def expected(error: Mapping[str, Any], each: Field[Any], hint: Any) -> str:
    """Return what an option should have been, from its type, bounds and check."""
    about = each.metadata
    if get_origin(hint) is Literal:
        return one_of(get_args(hint))
    if error["type"] == "value_error" and "check" in about:
        return str(error["ctx"]["error"])
    noun = "a list" if get_origin(hint) is tuple else NOUNS[hint]
    limits = " and ".join(f"{word} {about[key]}" for key, word in LIMITS.items() if key in about)
    return f"{noun} {limits}".rstrip() + f": {about['description']}"


def nearest(name: str, prefix: str, options: Mapping[str, Field[Any]]) -> str:
    """Return a hint at the option that was probably meant, with what it is."""
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), options, 1)
    if not close:
        return " (see --help)"
    about = options[close[0]].metadata["description"]
    see = " (see --help)" if prefix else ""
    return f"; did you mean {prefix}{kebab(close[0])} ({about})?{see}"
