"""Which letter of a layer's contraction is divided, and how its tensors then lie.

Convolution and fully connected layers are both the contraction `nc, oc -> no` (space rides
along). A strategy is a row of data; a new one is one more row.

letter | divides               | known as
-------|-----------------------|-----------------------------------------------------------------
n      | the batch             | data parallelism
o      | the output channels   | filter parallelism (Marques), FC split by output (survey)
c      | the input channels    | channel parallelism, FC split by input (survey)
m      | nothing               | all of the layer on the first rank: the master (Marques, alg. 1)
"""

from __future__ import annotations

from dataclasses import dataclass

BATCH, CHANNEL, OUT, IN = 0, 1, 0, 1


@dataclass(frozen=True)
class Row:
    """Say along which dimension x, w, b and y are split; None is replicated.

    `total` marks that y is a pending sum, so that a bias must be added by one rank only: it is
    kept split and padded with zeros. `alone` leaves everything on the first rank.
    """

    x: int | None
    w: int | None
    y: int | None
    total: bool = False
    alone: bool = False


_ROWS: dict[str, dict[str, Row]] = {
    "contraction": {
        "n": Row(x=BATCH, w=None, y=BATCH),
        "o": Row(x=None, w=OUT, y=CHANNEL),
        "c": Row(x=CHANNEL, w=IN, y=None, total=True),
        "m": Row(x=BATCH, w=OUT, y=BATCH, alone=True),
    },
    "channelwise": {
        "n": Row(x=BATCH, w=None, y=BATCH),
        "c": Row(x=CHANNEL, w=OUT, y=CHANNEL),
        "m": Row(x=BATCH, w=OUT, y=BATCH, alone=True),
    },
    "examplewise": {
        "n": Row(x=BATCH, w=None, y=BATCH),
        "m": Row(x=BATCH, w=OUT, y=BATCH, alone=True),
    },
}


def letters(kind: str) -> tuple[str, ...]:
    """Return the letters that a layer of this kind can be divided by."""
    return tuple(_ROWS[kind])


def row(kind: str, letter: str) -> Row:
    """Return the strategy of a layer kind; raises KeyError for a letter it does not have."""
    return _ROWS[kind][letter]
