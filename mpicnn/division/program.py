"""The program of all ranks, which forecasts count, and that of one, which training carries out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mpicnn.division.liveness import with_frees
from mpicnn.division.move import Hop
from mpicnn.division.operations import (
    EXAMPLES,
    Backward,
    Call,
    Coords,
    Forward,
    Loss,
    Operation,
    Positions,
    Receive,
    Rows,
    Send,
    Slot,
    Start,
    Store,
    Wait,
)
from mpicnn.division.placement import Layout, Partial, Replicated, region
from mpicnn.layers.base import Param
from mpicnn.models.model import layer_of


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
        return layer_of(self.name)

    @property
    def learns(self) -> bool:
        """Say whether gradients change it."""
        return not (self.buffer or self.frozen)

    @cached_property
    def summed(self) -> tuple[int, ...]:
        """Return the mesh axes over which `bring` is one plain all-reduce; () where it is not."""
        plain = all(
            isinstance(h.move.src, Partial) and isinstance(h.move.dst, Replicated)
            for h in self.bring
        )
        return tuple(h.axis for h in self.bring) if plain else ()


@dataclass(frozen=True)
class GlobalProgram:
    """Describe what the ranks of a pipeline stage do in a training step of `count` examples.

    All do the same operations, each on its own parts. `examples` are the examples that they read,
    places in the batch and how these lie, one micro-batch after another. `homes` are the slots of
    the parameters and buffers as they live, by name; `grads` those of the gradients as they arrive.
    """

    grid: tuple[int, ...]
    count: int
    examples: tuple[tuple[Positions, Layout], ...]
    ops: tuple[Operation, ...]
    slots: int
    weights: tuple[WeightLayout, ...]
    homes: Mapping[str, Slot]
    grads: Mapping[str, Slot]

    def at(self, coords: Coords) -> Program:
        """Return the program of the rank at `coords`."""
        read = [np.zeros(0, np.int64)]
        for positions, layout in self.examples:
            ((lo, hi),) = region((positions.size,), layout, coords)
            read.append(positions[lo:hi])
        calls: dict[int, Call] = {}
        found: list[Operation] = []
        for op in self.ops:
            match op:
                case Forward() | Backward():
                    call = calls.get(id(op.call)) or op.call.at(coords)
                    calls[id(op.call)] = call
                    found.append(op._replace(call=call, over=op.over and not call.idle))
                case Start() | Loss() | Rows() | Store() | Send() | Receive():
                    found.append(op.at(coords))
                case _:
                    found.append(op)
        return Program(
            self.count, np.concatenate(read), tuple(found), self.slots, self.weights, self.homes,
            self.grads,
        )  # fmt: skip


@dataclass(frozen=True)
class Program:
    """Describe what one rank does in one training step of a batch of `count` examples.

    `positions` are the examples of the batch that this rank reads; the rest is as in the program of
    all ranks.
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
                yield op._replace(saved=None, over=False)
            case Loss():
                yield op._replace(dx=None)
            case Rows():
                yield op
            case Start() | Wait() | Send() | Receive() if not op.back:
                yield op
