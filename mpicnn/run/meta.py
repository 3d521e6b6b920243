"""What a run saves beside its arrays: each entry's type and bounds, checked before it is used.

A digest says that a checkpoint is what was written, not who wrote it: it may be made to mislead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from reprlib import repr as short
from types import MappingProxyType
from typing import Any

from mpicnn.data.augment import augmentation
from mpicnn.data.check import wrong_names
from mpicnn.data.layout import MOST_SIDE
from mpicnn.division.planfile import saved_plan
from mpicnn.errors import UserError
from mpicnn.models.model import MOST_LAYERS
from mpicnn.settings.definitions import Settings
from mpicnn.settings.validation import MOST, saved

MOST_TEXT = 1000
MOST_INPUT = 2 * MOST_SIDE  # an image and what is added around it


@dataclass(frozen=True)
class Entry:
    """Say what an entry is: in words, by a check, and whether files of the first days lack it."""

    expected: str
    fits: Callable[[Any], bool]
    optional: bool = False


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _finite(value: Any) -> bool:
    return _whole(value, -MOST, MOST) or (isinstance(value, float) and isfinite(value))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST_SIDE and all(map(_finite, value))


def _shape(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 3 and all(_whole(n, 1, MOST_INPUT) for n in value)
    )


def _texts(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(name, str) for name in value)
        and not wrong_names(value)
    )


def _layers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= MOST_LAYERS
        and all(isinstance(layer, dict) for layer in value)
    )


def _stamp(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_whole(n, -(2**63), 2**63 - 1) for n in value)
    )


def _best(value: Any) -> bool:
    """Say whether a value is what `Choice.saved` gives; a score may be NaN or infinite."""
    if not isinstance(value, dict) or value.keys() != {"by", "step", "score", "tests"}:
        return False
    score = value["score"]
    return (
        value["by"] in ("", "loss", "top1", "top5")
        and (value["step"] is None or _whole(value["step"], 0, MOST))
        and _whole(value["tests"], 0, MOST)
        and (score is None or (isinstance(score, list) and [type(n) for n in score] == [float] * 3))
    )


def _name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MOST_TEXT


def _digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


SIDES = f"three whole numbers from 1 to {MOST_INPUT}"
ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        "step": Entry(f"a whole number from 0 to {MOST}", lambda v: _whole(v, 0, MOST)),
        "test_due": Entry("true or false", lambda v: isinstance(v, bool), optional=True),
        "epoch": Entry(f"a number from 0 to {MOST}", lambda v: _finite(v) and 0 <= v <= MOST),
        "seed": Entry("a whole number from 0 to 2^63 - 1", lambda v: _whole(v, 0, 2**63 - 1)),
        "settings": Entry("the text of settings", lambda v: isinstance(v, str)),
        "name": Entry(f"a printable text of {MOST_TEXT} characters at most", _name),
        "input_shape": Entry(SIDES, _shape),
        "model": Entry(f"a list of 1 to {MOST_LAYERS} layers", _layers),
        "image_shape": Entry(SIDES, _shape),
        "classes": Entry("names: printable, not too many, none twice", _texts),
        "mean": Entry("a finite number for each channel", _numbers),
        "std": Entry("a finite number for each channel", _numbers),
        "plan": Entry("the text of a plan", lambda v: isinstance(v, str)),
        "data": Entry("a SHA-256 of 64 hexadecimal digits", _digest),
        "stamp": Entry("size and time of a file", _stamp, optional=True),
        "code": Entry("a SHA-256 of 64 hexadecimal digits", _digest, optional=True),
        "best": Entry("the best test: by, step, score and tests", _best, optional=True),
    }
)
"""All entries of format 1 (docs/checkpoint-format.md)."""


def check_meta(meta: Mapping[str, Any], where: object) -> Settings:
    """Return the settings in a checkpoint's meta data, after checking all of it.

    Raises UserError, naming the file `where` and the entry, for one that is unknown or missing,
    is not what it should be, or does not go with the others.
    """
    begin = f"{where}: the checkpoint's meta data: "
    for name in meta.keys() - ENTRIES.keys():
        raise UserError(f"{begin}unknown entry {short(name)}; use the version that wrote it")
    for name, entry in ENTRIES.items():
        if name not in meta and not entry.optional:
            raise UserError(f"{begin}no {name}; expected {entry.expected}; use another checkpoint")
        if name in meta and not entry.fits(meta[name]):
            raise _wrong(begin, name, meta[name], entry.expected)
    try:
        settings = saved(Settings, meta["settings"])
        saved_plan(meta["plan"])
    except UserError as error:
        raise UserError(f"{begin}{error}") from None
    _check_together(meta, settings, begin)
    return settings


def _check_together(meta: Mapping[str, Any], settings: Settings, begin: str) -> None:
    """Raise UserError where entries contradict each other."""
    channels, inputs = meta["image_shape"][0], meta["input_shape"]
    for name in ("mean", "std"):
        if len(meta[name]) != channels:
            raise _wrong(begin, name, meta[name], f"{channels} numbers, one for each channel")
    if min(meta["std"]) <= 0:
        raise _wrong(begin, "std", meta["std"], "numbers above 0")
    if meta["seed"] != settings.seed:
        raise _wrong(begin, "seed", meta["seed"], f"{settings.seed}, as in the settings")
    c, h, w = meta["image_shape"]
    if list(augmentation(settings).out_shape((c, h, w))) != inputs:
        raise _wrong(
            begin, "input_shape", inputs, f"what the settings make of images of {c} x {h} x {w}"
        )


def _wrong(begin: str, name: str, value: Any, expected: str) -> UserError:
    return UserError(
        f"{begin}{name} is {short(value)}, expected {expected}; use another checkpoint"
    )
