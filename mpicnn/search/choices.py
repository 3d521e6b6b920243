"""How values may be held between two layers, and by which letters the next may divide them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from mpicnn.division.network import Value
from mpicnn.division.propagation import LayerDivision, divide
from mpicnn.division.strategy import DEFAULT, INPUT_KIND, letters, row, rows
from mpicnn.search.frames import Frame


class Form(NamedTuple):
    """Say how a value is held: the division of its layer, and each part of the batch that is
    computed by itself."""

    division: LayerDivision
    values: tuple[Value, ...]


class Choices:
    """Number the forms in which values of a frame's plans are held, and find what may follow."""

    def __init__(self, frame: Frame) -> None:
        self.frame, self.plan = frame, frame.plan
        self._forms: list[Form] = []
        self._numbers: dict[Hashable, int] = {}
        self._options: dict[Hashable, list[tuple[str, LayerDivision]]] = {}

    def __getitem__(self, number: int) -> Form:
        return self._forms[number]

    def number(self, division: LayerDivision, values: tuple[Value, ...]) -> int:
        key = (division.rows, values)
        if key not in self._numbers:
            self._numbers[key] = len(self._forms)
            self._forms.append(Form(division, values))
        return self._numbers[key]

    def named(self, kind: str, total: Sequence[bool] = ()) -> list[str]:
        """Return the letters that a plan may name for a kind of layer.

        The first of two axes divides the batch. Channels of a layer that is no contraction are
        only divided anew where a pending sum, `total` by axis, is to be made anyway.
        """
        outer = DEFAULT * (len(self.frame.grid) - 1)
        found = []
        for letter in letters(kind):
            each = row(kind, letter)
            if each.alone:
                if kind in ("contraction", INPUT_KIND):
                    found.append(outer + each._replace(owner=self.frame.owner).name)
            elif kind != "channelwise" or each.shares_batch or (total and total[-1]):
                found.append(outer + letter)
        return found

    def options(
        self, kind: str, name: str, form: int, joins: bool = False
    ) -> list[tuple[str, LayerDivision]]:
        """Return the divisions of a layer that reads such a value (first), and their letters.

        A layer that can work on a value as it lies does so: what comes next may carry its output
        as well as its input. It is divided anew only where a pending sum is to be made, or where
        it `joins` values that may lie otherwise.
        """
        key = (kind, form, joins)
        if key not in self._options:
            self._options[key] = self._allowed(kind, name, form, joins)
        return self._options[key]

    def _allowed(
        self, kind: str, name: str, form: int, joins: bool
    ) -> list[tuple[str, LayerDivision]]:
        before = self._forms[form].division
        total = [each.total for each in before.rows]
        follows = divide(name, kind, self.plan, before)
        if kind != "contraction" and follows.follows and not joins and not any(total):
            return [("", follows)]
        named = [
            (split, LayerDivision(rows(kind, split), self.frame.shares))
            for split in self.named(kind, total)
        ]
        if kind == "contraction":
            return named
        return [("", follows), *((s, d) for s, d in named if d.rows != follows.rows)]
