"""Read settings from a TOML file and the command line. Imported on the one rank that reads them."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import Field, dataclass
from types import MappingProxyType
from typing import Any, NoReturn, get_origin, get_type_hints

from mpicnn import __version__
from mpicnn.documents import read_toml
from mpicnn.errors import UserError
from mpicnn.settings import recipes
from mpicnn.settings.option import Options, describe, kebab
from mpicnn.settings.validation import AnyOptions, kept, nearest, wrong
from mpicnn.text import one_of

PURPOSES: Mapping[str, str] = MappingProxyType(
    {
        "": "Train convolutional networks over MPI ranks.",
        "data": "Make image files, check them, and show what they hold.",
        "data prepare": "Make an image file out of images or a known data set.",
    }
)
"""What the commands that begin with some words have in common."""


@dataclass(frozen=True)
class Form:
    """Say how `--help` is written: the program's name, and the width in columns."""

    prog: str
    width: int

    def parser(self, usage: str, about: str) -> Parser:
        """Return a parser that is described so."""
        formatter = functools.partial(
            argparse.HelpFormatter, max_help_position=26, width=self.width
        )
        return Parser(
            prog=self.prog, usage=f"%(prog)s {usage}", description=about,
            formatter_class=formatter, argument_default=argparse.SUPPRESS, allow_abbrev=False,
            add_help=False,
        )  # fmt: skip


def refuse(
    argv: list[str], begun: str, form: Form, commands: Mapping[str, type[Options]]
) -> NoReturn:
    """Show the commands that begin with the words `begun`, or refuse the word behind these.

    Raises UserError, or SystemExit(0) after `--help` and `--version`.
    """
    known = [name for name in commands if name.startswith(f"{begun} ".lstrip())]
    parser = form.parser("COMMAND ...", PURPOSES[begun])
    general = parser.add_argument_group("general")
    add_general(general)
    listed = parser.add_argument_group(
        "commands", f"For the options of a command: {form.prog} COMMAND --help"
    )
    for name in known:
        rest = name.removeprefix(begun).strip()
        listed.add_argument(
            rest, help=first_sentence(commands[name].purpose), nargs="?", metavar=rest
        )
    if not argv or argv[0].startswith("-"):
        parser.parse_known_args(argv)
    words = [name.removeprefix(begun).split()[0] for name in known]
    given = argv[0] if argv else "no command given"
    import difflib  # where something is wrong alone

    close = difflib.get_close_matches(given, words, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    expected = one_of(tuple(dict.fromkeys(words)))
    raise UserError(f"{form.prog}: {given}: expected {expected}{hint} (see {form.prog} --help)")


def first_sentence(text: str) -> str:
    """Return a text up to its first full stop that ends a sentence."""
    return f"{text.partition('. ')[0].removesuffix('.')}."


def read(
    argv: list[str], kind: type[AnyOptions], form: Form, skipped: Collection[str]
) -> AnyOptions:
    """Return settings of `kind` (see `definitions.parse`); the file may hold `skipped` too."""
    try:
        "".join(argv).encode()
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        remedy = "rename what is not" if encoding == "utf-8" else "set PYTHONUTF8=1"
        raise UserError(f"command line: not text in {encoding.upper()}; {remedy}") from None
    options = {each.name: each for _, each in kind.options()}
    types = get_type_hints(kind)
    usage = f"{' '.join(arguments(kind, options.values(), types))} [--option value ...]"
    parser = form.parser(usage, kind.purpose)
    add_options(parser, kind, types)
    found, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        what = "no such option" if name.startswith("-") else "one argument too many"
        raise UserError(f"{name}: {what}{nearest(name, '--', options)}")
    flags = vars(found)
    path = flags.pop("CONFIG", None)
    path = None if path is None else recipes.or_file(path)
    values = {} if path is None else file_values(path, options, skipped)
    settings = {}
    for name, value in (values | flags).items():
        each = options[name]
        try:
            settings[name] = kept(value, each, types[name])
        except ValueError as error:
            if name in flags:
                raise UserError(f"{flag(each)} {wrong(value, error)} (see --help)") from None
            raise UserError(f"{path}: {kebab(name)} = {wrong(value, error)}") from None
    return kind(**settings)


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


def add_options(parser: Parser, kind: type[Options], types: Mapping[str, Any]) -> None:
    """Give `parser` the options of `kind` under their headings."""
    general = parser.add_argument_group("general")
    groups = {
        group.heading: parser.add_argument_group(group.heading) for group, _ in kind.options()
    }
    if kind.reads_file:
        general.add_argument(
            "CONFIG", nargs="?",
            help="TOML file of options, or the name of a recipe; flags override it",
        )  # fmt: skip
        general.add_argument(
            "--recipes", nargs="?", action=Recipes, metavar="NAME",
            help="list the recipes, or print the one that is named, and exit",
        )  # fmt: skip
    add_general(general)
    for group, each in kind.options():
        hint, names = types[each.name], [f"--{kebab(each.name)}"]
        how: dict[str, Any] = {"metavar": placeholder(each, hint)}
        if positional(each):
            names = [each.name]
            how["nargs"] = "+" if get_origin(hint) is tuple else None
        elif hint is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif get_origin(hint) is tuple:
            how |= {"action": "extend", "type": parts}
        about = help_text(each, hint).replace("%", "%%")
        groups[group.heading].add_argument(*names, help=about, **how)


def parts(text: str) -> list[str]:
    """Return the parts of "0.5,0.75", which may stand in brackets; of "[]" none."""
    inner = text[1:-1] if text[:1] + text[-1:] == "[]" else text
    return inner.split(",") if text != "[]" else []


def add_general(group: argparse._ArgumentGroup) -> None:
    """Add the options that every command has."""
    group.add_argument(
        "-h", "--help", action="help", help="show this help and exit; defaults are in [brackets]"
    )
    group.add_argument(
        "--version", action="version", version=f"mpicnn {__version__}",
        help="show the version and exit",
    )  # fmt: skip


def positional(each: Field[Any]) -> bool:
    """Tell whether an option is an argument without a name."""
    return bool(each.metadata.get("positional"))


def flag(each: Field[Any]) -> str:
    """Return what precedes the value of an option on the command line."""
    return each.metadata["metavar"] if positional(each) else f"--{kebab(each.name)}"


def placeholder(each: Field[Any], hint: Any) -> str:
    """Return what stands for the value of an option in `--help`."""
    return each.metadata["metavar"] or {int: "N", float: "X"}.get(hint, "NAME")


def arguments(
    kind: type[Options], options: Collection[Field[Any]], types: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the arguments without a name as the usage line shows them."""
    if kind.reads_file:
        yield "[CONFIG]"
    for each in filter(positional, options):
        yield f"{flag(each)} ..." if get_origin(types[each.name]) is tuple else flag(each)


def help_text(each: Field[Any], hint: Any) -> str:
    """Return what `--help` says of one option: description, choices, default."""
    text = describe(each, hint)
    if positional(each):
        return text
    default = each.metadata.get("unset", each.default)
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, tuple):
        default = ",".join(f"{each:g}" for each in default)
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"{text} [{default}]"


def file_values(
    path: str, options: Mapping[str, Field[Any]], skipped: Collection[str]
) -> dict[str, Any]:
    """Return the settings in a TOML file by field name, without those in `skipped`."""
    try:
        with open(path, encoding="utf-8") as file:
            found = read_toml(file.read())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a TOML file of settings") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8; expected a TOML file of settings") from None
    except ValueError as error:
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
