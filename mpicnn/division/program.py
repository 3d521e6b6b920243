"""The program of one rank: a list of operations that training carries out and forecasts count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mpicnn.division.liveness import with_frees
from mpicnn.division.operations import (
    EXAMPLES,
    Forward,
    Hop,
    Loss,
    Operation,
    Positions,
    Receive,
    Rows,
    Send,
    Slot,
    Start,
    Wait,
)
from mpicnn.division.placement import Layout, Partial, Replicated
from mpicnn.layers.base import Param


@dataclass(frozen=True)
class WeightLayout:
    """Describe where a parameter or buffer lives between steps, and how layers compute with it.

    `fetch` carries it from `home` to `use`; `bring` carries its gradient, which arrives in the
    dual of `use`, home. One of a `frozen` layer has none, and lives where it is used.
    """

    name: str
    param: Param
    home: Layout
    use: Layout
    fetch: tuple[Hop, ...]
    bring: tuple[Hop, ...]
    buffer: bool
    frozen: bool = False

    @property
    def layer(self) -> str:
        """Return the name of the layer that it belongs to."""
        return self.name.rsplit(".", 1)[0]

    @property
    def learns(self) -> bool:
        """Say whether gradients change it."""
        return not (self.buffer or self.frozen)

    @property
    def summed(self) -> tuple[int, ...]:
        """Return the mesh axes over which `bring` is one plain all-reduce; () where it is not."""
        plain = all(
            isinstance(h.move.src, Partial) and isinstance(h.move.dst, Replicated)
            for h in self.bring
        )
        return tuple(h.axis for h in self.bring) if plain else ()


@dataclass(frozen=True)
class Program:
    """Describe what one rank does in one training step of a batch of `count` examples.

    `positions` are the examples of the batch that this rank reads. `homes` are the slots of the
    parameters and buffers as they live, by name; `grads` those of the gradients as they arrive.
    """

    count: int
    positions: Positions
    ops: tuple[Operation, ...]
    slots: int
    weights: tuple[WeightLayout, ...]
    homes: Mapping[str, Slot]
    grads: Mapping[str, Slot]

    @property
    def losses(self) -> Iterator[Loss]:
        """Yield the losses in order: one for each round of each micro-batch."""
        return (op for op in self.ops if isinstance(op, Loss))

    @property
    def answers(self) -> Positions:
        """Return the places in the batch of the examples on which this rank has the loss."""
        return np.concatenate([np.zeros(0, np.int64), *(loss.labels for loss in self.losses)])

    @cached_property
    def forward(self) -> tuple[Operation, ...]:
        """Return what of it gives answers: no gradients, and nothing kept for them."""
        return with_frees(_forward(self.ops), {EXAMPLES, *self.homes.values()})


def _forward(ops: tuple[Operation, ...]) -> Iterator[Operation]:
    for op in ops:
        match op:
            case Forward():
                # What may be written over was found for training: dropout, say, gives a view here.
                yield replace(op, saved=None, over=False)
            case Loss():
                yield replace(op, dx=None)
            case Rows():
                yield op
            case Start() | Wait() | Send() | Receive() if not op.back:
                yield op
