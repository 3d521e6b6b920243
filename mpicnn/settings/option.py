"""What a setting is: a dataclass field that carries its description, bounds and check."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from typing import (
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from mpicnn import __version__
from mpicnn.errors import UserError
from mpicnn.text import one_of


def option(default: Any, description: str, metavar: str = "", **metadata: Any) -> Any:
    """Describe one setting: default, what it is (with its unit), placeholder in `--help`.

    `metadata` may hold the bounds `gt`, `ge`, `lt`, `le`; `unset`, what `--help` says in place of
    an empty or 0 default; `check`, a function that returns the value as it is to be kept or raises
    ValueError("what was expected"); `names_file`, a function that tells whether a value is the path
    of a file; and `positional`: a required argument without a name.
    """
    metadata |= {"description": description, "metavar": metavar}
    if metadata.get("positional"):
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


Group = TypeVar("Group")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def group(cls: type[Group]) -> type[Group]:
    """Make a class a group of options that classes of settings join, never an object by itself.

    So it gets no methods, each of which would take time at every start. Groups that are used by
    themselves are dataclasses.
    """
    return dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)(cls)


class Options:
    """Read and write settings. A class of settings joins groups, each a dataclass of options.

    `heading` is the group's title in `--help`; `fixed` says that its options may not change when
    a run is resumed. `purpose` and `reads_file` belong to the whole class: what the command does
    and whether it takes a TOML file.
    """

    heading: ClassVar[str]
    fixed: ClassVar[bool] = False
    purpose: ClassVar[str]
    reads_file: ClassVar[bool] = False

    @classmethod
    def options(cls) -> Iterator[tuple[type[Options], Field[Any]]]:
        """Yield every option with its group, in the order of `--help`."""
        for group in cls.__bases__:
            for each in fields(group):
                yield group, each

    def absolute(self) -> Self:
        """Return the same settings with all paths absolute: from any directory the same files."""
        paths = {
            each.name: os.path.abspath(value)
            for _, each in self.options()
            if (names_file := each.metadata.get("names_file"))
            and names_file(value := getattr(self, each.name))
        }
        return replace(self, **paths)  # type: ignore[type-var]

    def to_json(self) -> str:
        """Return the settings as text for other ranks; floats survive exactly."""
        return json.dumps(asdict(self))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings that `to_json` wrote, with defaults for what it did not know.

        Raises UserError for settings that this version does not know.
        """
        values = json.loads(text)
        cls.check_known(values)
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

    @classmethod
    def check_known(cls, values: Mapping[str, Any]) -> None:
        """Raise UserError for settings, by name, that this version does not know."""
        if unknown := values.keys() - {each.name for _, each in cls.options()}:
            raise UserError(
                f"settings written by another version of mpicnn: {', '.join(sorted(unknown))} "
                f"unknown to {__version__}; use the version that wrote them"
            )

    def to_toml(self) -> str:
        """Return the settings as a commented TOML file that reads back as equal settings."""
        lines, heading, types = [], "", get_type_hints(type(self))
        for group, each in self.options():
            if group.heading != heading:
                heading = group.heading
                lines.append(f"\n# {heading}")
            # JSON's notation is TOML's too, but for DEL, which TOML wants escaped.
            value = json.dumps(getattr(self, each.name), ensure_ascii=False)
            setting = f"{kebab(each.name)} = {value}".replace("\x7f", "\\u007f")
            note = describe(each, types[each.name])
            if "unset" in each.metadata:
                note += f"; {json.dumps(each.default)}: {each.metadata['unset']}"
            lines.append(f"{setting:<30}  # {note}")
        return "\n".join(lines).lstrip() + "\n"


def kebab(name: str) -> str:
    """Return the name of a setting as users write it."""
    return name.replace("_", "-")


def describe(each: Field[Any], hint: Any) -> str:
    """Return what an option is, and its choices where they are a few."""
    about = str(each.metadata["description"])
    return f"{about}: {one_of(get_args(hint))}" if get_origin(hint) is Literal else about


def differences(old: Options, new: Options) -> list[str]:
    """Return one line for each setting that differs and may not when a run is resumed.

    Length, division of the work, machine, evaluation and display may change. Network and data are
    told by what they are, not by their names (`mpicnn.run.resuming`).
    """
    return [
        f"{kebab(each.name)}: {before} before, {after} now"
        for group, each in old.options()
        if group.fixed and (before := getattr(old, each.name)) != (after := getattr(new, each.name))
    ]
