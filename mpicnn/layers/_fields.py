"""Check and normalise what layers are constructed with."""

from __future__ import annotations

import math
import operator
from typing import Any, overload

from mpicnn.errors import UserError
from mpicnn.ops.interface import Pair


class PairField:
    """Hold a pair of integers of at least `least`, given as a pair or as one for both axes.

    With `sides` four are taken too, (top, bottom, left, right), and kept where no pair says the
    same.

    A descriptor, so that a frozen dataclass takes either and its methods always read a pair.
    `like` names an earlier field whose pair is taken where None is given. Raises UserError for
    anything else.
    """

    def __init__(
        self, least: int, default: int | None = None, like: str | None = None, sides: bool = False
    ) -> None:
        self.least = least
        self.default = default
        self.like = like
        self.sides = sides

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, layer: None, owner: type) -> int | None: ...
    @overload
    def __get__(self, layer: object, owner: type) -> Pair: ...
    def __get__(self, layer: object | None, owner: type) -> int | Pair | None:
        """Return the layer's pair; on the class, the default that dataclasses look for."""
        if layer is None:
            if self.default is None and self.like is None:
                raise AttributeError(f"{self.name} has no default")
            return self.default
        pair: Pair = vars(layer)[self.name]
        return pair

    def __set__(self, layer: object, value: int | Pair | None) -> None:
        if value is None and self.like is not None:
            value = getattr(layer, self.like)
        values: Any = value if isinstance(value, tuple | list) else (value, value)
        lengths = (2, 4) if self.sides else (2,)
        if len(values) not in lengths or not all(is_integer(v, self.least) for v in values):
            where = f"{type(layer).__name__}: {self.name}"
            more = "two, or four: top, bottom, left, right" if self.sides else "or two"
            raise UserError(
                f"{where} is {value!r}: give an integer of at least {self.least}, {more}"
            )
        found = tuple(operator.index(v) for v in values)
        even = len(found) == 4 and found[::2] == found[1::2]
        vars(layer)[self.name] = found[::2] if even else found


def is_integer(value: Any, least: int) -> bool:
    """Return whether value is an integer (not a bool) of at least `least`."""
    if isinstance(value, bool):
        return False
    try:
        return operator.index(value) >= least
    except TypeError:
        return False


def check_positive(layer: object, *names: str) -> None:
    """Raise UserError unless the attributes of these names are integers of at least 1."""
    for name in names:
        value = getattr(layer, name)
        if not is_integer(value, 1):
            where = f"{type(layer).__name__}: {name}"
            raise UserError(f"{where} is {value!r}: give an integer of at least 1")


def is_number(value: Any, least: float) -> bool:
    """Return whether value is a finite real number (not a bool) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return least <= value < math.inf


def check_numbers(layer: object, least: float, *names: str) -> None:
    """Raise UserError unless the attributes of these names are finite and at least `least`."""
    for name in names:
        value = getattr(layer, name)
        if not is_number(value, least):
            where = f"{type(layer).__name__}: {name}"
            raise UserError(f"{where} is {value!r}: give a number of at least {least:g}")


def check_init(layer: object, init: str | float) -> None:
    """Raise UserError unless `init` is a way for weights to start (see `Param`)."""
    if init not in ("he", "xavier", "zeros", "ones") and not is_number(init, 0):
        raise UserError(
            f"{type(layer).__name__}: init is {init!r}: "
            'give "he", "xavier", "zeros", "ones" or a standard deviation'
        )


def first_group(channels: int, each: int, groups: int, of_outputs: int) -> int:
    """Return the group that the local channels of x begin with, `each` of which makes a group.

    They are those of all groups, or of those alone whose outputs are here, from `of_outputs` on.
    """
    return 0 if channels == each * groups else of_outputs


def check_image(layer: object, shape: tuple[int, ...]) -> None:
    """Raise UserError unless `shape` is that of an image, (c, h, w)."""
    if len(shape) != 3:
        raise UserError(
            f"{type(layer).__name__}: the input has shape {shape} where (c, h, w) was expected: "
            "put the layer in front of Flatten"
        )
