"""The strategies: which index of a layer's contraction is divided, and how its tensors then lie.

Convolution and fully connected layers are both the contraction `nc, oc -> no` (space rides
along). A strategy is a row of data; a new one is one more row.

letter | divides               | known as
-------|-----------------------|-----------------------------------------------------------------
n      | the batch             | data parallelism
o      | the output channels   | filter parallelism (Marques), FC split by output (survey)
c      | the input channels    | channel parallelism, FC split by input (survey)
g      | the groups            | restricted connectivity (OWT's closing idea), towers (survey)
m      | nothing               | all of the layer on the first rank: the master (Marques, alg. 1)
m@k    | nothing               | all of the layer on rank k of the axis: a branch (survey)
r      | nothing               | all of the input on every rank

What else the package wants to know of a letter, it asks its row: no letter stands elsewhere, but
in plans: the presets, and those of the papers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

BATCH, CHANNEL, OUT, IN = 0, 1, 0, 1
INPUT_KIND, LOSS_KIND = "input", "examplewise"
"""The kinds of what is not a layer: the batch as it is read, and the loss behind the last one."""


class Row(NamedTuple):
    """Say what one letter of a layer kind does along one mesh axis.

    `x`, `w` and `y` are the dimensions along which these are split; None is replicated. `total`
    marks that y is a pending sum, so that one rank alone may add the bias. `alone` leaves
    everything on one rank, the `owner`. `grouped` divides whole groups of a layer's channels, so
    that no rank needs an input of another's outputs.
    """

    letter: str
    x: int | None
    w: int | None
    y: int | None
    total: bool = False
    alone: bool = False
    owner: int = 0
    grouped: bool = False

    @property
    def name(self) -> str:
        """Return what a plan calls it: the letter, with an owner that is not the first rank."""
        return self.named(self.letter)

    def named(self, letter: str) -> str:
        """Return what a plan calls a letter with this owner."""
        return f"{letter}@{self.owner}" if self.owner else letter

    @property
    def shares_batch(self) -> bool:
        """Say whether the ranks divide the examples of y between them."""
        return self.y == BATCH and not self.alone

    @property
    def divides(self) -> bool:
        """Say whether the ranks divide anything between them."""
        return not self.alone and (self.x, self.y) != (None, None)

    @property
    def divides_inputs(self) -> bool:
        """Say whether each rank sees some of the input channels, and y is a sum over the ranks."""
        return self.total

    @property
    def divides_channels(self) -> bool:
        """Say whether the ranks divide channels of the input or of the output between them."""
        return not self.alone and CHANNEL in (self.x, self.y)

    @property
    def least(self) -> int:
        """Return how many items a rank with a share gets at least.

        A ragged batch may have fewer examples than ranks; channels are the same at every step.
        """
        return 0 if self.shares_batch else 1

    @property
    def follow(self) -> str | None:
        """Return the name by which a layer behind keeps the layout of y; None where none does."""
        if self.total:  # a sum that is still to be made: no function of it may be taken
            return None
        kept = (r for r in _ROWS["channelwise"].values() if (r.x, r.alone) == (self.y, self.alone))
        return next((self.named(r.letter) for r in kept), None)

    @property
    def reads(self) -> str:
        """Return the name by which the input is read for a first layer of this one."""
        rows = _ROWS[INPUT_KIND].values()
        alike = (self.named(r.letter) for r in rows if (r.y, r.alone) == (self.x, self.alone))
        return next(alike, next(r.letter for r in rows if r.y is None))

    def length(self, batch: int, channels_in: int, channels_out: int, groups: int = 1) -> int:
        """Return the length of the index that the shares divide: examples, channels or groups."""
        if self.grouped:
            return groups
        if self.x == CHANNEL:
            return channels_in
        return channels_out if self.y == CHANNEL else batch


def _table(*rows: Row) -> dict[str, Row]:
    return {row.letter: row for row in rows}


_BY_BATCH = Row("n", x=BATCH, w=None, y=BATCH)
_ON_FIRST = Row("m", x=BATCH, w=OUT, y=BATCH, alone=True)
_ROWS: dict[str, dict[str, Row]] = {
    "contraction": _table(
        _BY_BATCH,
        Row("o", x=None, w=OUT, y=CHANNEL),
        Row("c", x=CHANNEL, w=IN, y=None, total=True),
        Row("g", x=CHANNEL, w=OUT, y=CHANNEL, grouped=True),
        _ON_FIRST,
    ),
    "channelwise": _table(_BY_BATCH, Row("c", x=CHANNEL, w=OUT, y=CHANNEL), _ON_FIRST),
    "examplewise": _table(_BY_BATCH, _ON_FIRST),
    INPUT_KIND: _table(_BY_BATCH, _ON_FIRST, Row("r", x=None, w=None, y=None)),
}

DEFAULT = _BY_BATCH.letter
"""How a layer is divided that the plan does not name, where it cannot follow the one before it."""


def letters(kind: str) -> tuple[str, ...]:
    """Return the letters that a layer of this kind can be divided by."""
    return tuple(_ROWS[kind])


def all_letters() -> tuple[str, ...]:
    """Return the letters that any layer can be divided by."""
    return tuple(dict.fromkeys(a for kind in _ROWS if kind != INPUT_KIND for a in _ROWS[kind]))


def names(split: str) -> list[str]:
    """Return a plan's split axis by axis: ["n", "m@2"] of "nm@2".

    What is none comes out as one name that no kind has.
    """
    found = re.findall(r"[a-z](?:@[0-9]+)?", split)
    return found if "".join(found) == split else [split]


def row(kind: str, name: str) -> Row:
    """Return the row of a name such as "o" or "m@2".

    Raises KeyError for one that the kind of layer does not have.
    """
    letter, _, owner = name.partition("@")
    found = _ROWS[kind][letter]
    if owner and not found.alone:
        raise KeyError(name)
    return found._replace(owner=int(owner)) if owner else found


def rows(kind: str, split: str) -> tuple[Row, ...]:
    """Return the row of each axis; raises KeyError for a name that the kind does not have."""
    return tuple(row(kind, name) for name in names(split))
