"""Read settings from a TOML file and the command line by pydantic-settings.

Imported by `mpicnn.settings.definitions.parse` alone, on the one rank that reads them.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import reprlib
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import MISSING, Field
from types import GenericAlias
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ValidationError, create_model
from pydantic import Field as Bounds
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from mpicnn.errors import UserError
from mpicnn.settings import recipes
from mpicnn.settings.option import Options, describe, kebab, version
from mpicnn.text import one_of

AnyOptions = TypeVar("AnyOptions", bound=Options)
LIMITS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read(
    argv: list[str], command: str, kind: type[AnyOptions], skipped: Collection[str], columns: int
) -> AnyOptions:
    """Return settings of `kind` (see `definitions.parse`); the file may hold `skipped` too."""
    try:
        "".join(argv).encode()
    except UnicodeEncodeError:
        raise UserError("command line: not text in UTF-8; rename what is not") from None
    options = {each.name: each for _, each in kind.options()}
    types = get_type_hints(kind)
    model = validator(options, types)
    parser = Parser(
        prog=f"python -m mpicnn.{command}",
        usage=f"%(prog)s {' '.join(arguments(kind, options.values()))} [--option value ...]",
        description=kind.purpose,
        formatter_class=functools.partial(
            argparse.HelpFormatter, max_help_position=26, width=columns
        ),
        allow_abbrev=False,
        add_help=False,
    )
    source = add_options(parser, kind, types, model)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        what = "no such option" if name.startswith("-") else "one argument too many"
        raise UserError(f"{name}: {what}{nearest(name, '--', options)}")
    flags = set(vars(found))
    path = vars(found).pop("CONFIG", None)
    path = None if path is None else recipes.or_file(path)
    values = {} if path is None else file_values(path, options, skipped)
    # Past the source, which would split names of files at commas.
    values |= {name: vars(found).pop(name) for name in options if positional(options[name])}
    try:
        checked = model(**{"_cli_settings_source": source(parsed_args=found), **values})
    except SettingsError as error:
        raise UserError(f"{error} (see --help)") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where = flag(options[name]) if name in flags else f"{path}: {kebab(name)} ="
        value = reprlib.repr(first["input"])
        raise UserError(
            f"{where} {value}: expected {expected(first, options[name], types[name])}"
        ) from None
    return kind(**{name: getattr(checked, name) for name in options})


class Parser(argparse.ArgumentParser):
    """Raise what argparse would print and exit with."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')} (see --help)")


class Recipes(argparse.Action):
    """List the recipes, or print the one that is named, and exit as `--help` does."""

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, name: Any, option: Any = None
    ) -> None:
        """Print. Raises UserError for a name that no recipe has."""
        print(recipes.text(name) if name else recipes.listed(), end="")
        parser.exit()


class Sources(BaseSettings):
    """Take values from flags, then from the caller (the file); read nothing else."""

    model_config = SettingsConfigDict(
        extra="forbid",
        allow_inf_nan=False,
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


def add_options(
    parser: Parser, kind: type[Options], types: Mapping[str, Any], model: type[Sources]
) -> CliSettingsSource[Sources]:
    """Give `parser` the options of `kind` under their headings; return what reads them."""
    owners = {each.name: (group.heading, each) for group, each in kind.options()}
    general = parser.add_argument_group("general")
    groups = {heading: parser.add_argument_group(heading) for heading, _ in owners.values()}
    if kind.reads_file:
        general.add_argument(
            "CONFIG", nargs="?", metavar="CONFIG", default=argparse.SUPPRESS,
            help="options in a file, by name without dashes, or a recipe's name; flags override it",
        )  # fmt: skip
        general.add_argument(
            "--recipes", nargs="?", action=Recipes, metavar="NAME", default=argparse.SUPPRESS,
            help="list the recipes, or print one as a file to change, and leave",
        )  # fmt: skip
    general.add_argument(
        "-h", "--help", action="help", help="show this; [in brackets]: what holds if not given"
    )
    general.add_argument(
        "--version", action="version", version=f"mpicnn {version()}",
        help="show the version and leave",
    )  # fmt: skip

    def add_argument(_: Any, *names: str, **how: Any) -> argparse.Action:
        heading, each = owners[how["dest"]]
        if positional(each):
            names = (each.name,)
            how = {"nargs": "+" if get_origin(types[each.name]) is tuple else None}
        if how.get("action") is not argparse.BooleanOptionalAction:
            how["metavar"] = placeholder(each, types[each.name])
        how["help"] = help_text(each, types[each.name]).replace("%", "%%")
        return groups[heading].add_argument(*names, **how)

    return CliSettingsSource(model, root_parser=parser, add_argument_method=add_argument)


def positional(each: Field[Any]) -> bool:
    """Tell whether an option is an argument without a name."""
    return bool(each.metadata.get("positional"))


def flag(each: Field[Any]) -> str:
    """Return what precedes the value of an option on the command line."""
    return each.metadata["metavar"] if positional(each) else f"--{kebab(each.name)}"


def placeholder(each: Field[Any], hint: Any) -> str:
    """Return what stands for the value of an option in `--help`."""
    return each.metadata["metavar"] or {int: "N", float: "X"}.get(hint, "NAME")


def arguments(kind: type[Options], options: Collection[Field[Any]]) -> Iterator[str]:
    """Yield the arguments without a name as the usage line shows them."""
    if kind.reads_file:
        yield "[CONFIG]"
    for each in filter(positional, options):
        yield flag(each)


def help_text(each: Field[Any], hint: Any) -> str:
    """Return what `--help` says of one option: description, choices, default."""
    text = describe(each, hint)
    if positional(each):
        return text
    default = each.default or each.metadata.get("unset", each.default)
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = ",".join(map(str, default))
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"{text} [{default}]"


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
    return f"; did you mean {prefix}{kebab(close[0])} ({about})?"


def file_values(
    path: str, options: Mapping[str, Field[Any]], skipped: Collection[str]
) -> dict[str, Any]:
    """Return the settings in a TOML file by field name, without those in `skipped`."""
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a TOML file of settings") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; expected a TOML file of settings") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: {error}; expected lines like batch = 128") from None
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in options and name not in skipped:
            if isinstance(value, dict):
                raise UserError(f"{path}: [{key}]: settings are not in tables; leave the line out")
            raise UserError(f"{path}: {key}: no such setting{nearest(key, '', options)}")
        if name in values:
            raise UserError(f"{path}: {key}: is there twice, with - and with _; keep one")
        if name in options:
            values[name] = value
    return values
