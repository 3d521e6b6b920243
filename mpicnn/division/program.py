"""The program of one rank: the steps that training carries out and forecasts count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.move import Move
from mpicnn.division.placement import Layout, Partial, Replicated, Shape
from mpicnn.layers.base import Layer, Param

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Hop:
    """Describe one Move along one mesh axis of a tensor of `shape` as seen along that axis."""

    axis: int
    move: Move
    shape: Shape


@dataclass(frozen=True)
class Redistribute:
    """Describe a step that changes where activations lie before layer `name` runs."""

    name: str
    hop: Hop

    def detail(self, forward: bool) -> str:
        """Return its collective and direction in words."""
        move = self.hop.move if forward else self.hop.move.adjoint
        return f"{move.collective}, {'forward' if forward else 'backward'}"


@dataclass(frozen=True)
class Compute:
    """Describe a step that runs one layer on this rank's part of its input.

    `x_shape` and `y_shape` are local; `positions` are the places in the global batch of the local
    rows of y; `channels` the local range of y's channels; `sum_axes` the mesh axes that divide
    the batch; `weights` the full names of the layer's parameters by their short ones; `idle`
    marks a rank that leaves the layer to another one; `first` the layer before which no gradient
    is needed; `joined` a contraction and a ReLU behind it that go forward in one pass.
    """

    name: str
    layer: Layer
    index: int
    x_shape: Shape
    y_shape: Shape
    positions: Positions
    channels: tuple[int, int]
    weights: dict[str, str]
    sum_axes: tuple[int, ...]
    idle: bool
    first: bool
    joined: bool = False

    @property
    def category(self) -> str:
        """Return "convolution" or "other", as step times are split in Marques' figures 6 and 8."""
        return "convolution" if self.layer.convolves else "other"


@dataclass(frozen=True)
class Transfer:
    """A step that hands the activations, of local `shape`, to the stage behind this one, or takes
    them from the stage before it; layer `name` is the first behind the border.

    Every rank deals with the one at its own place in the other stage's grid. The backward pass is
    the same step in the other direction.
    """

    name: str
    shape: Shape
    out: bool

    def detail(self, forward: bool) -> str:
        """Return its direction in words."""
        verb = "send" if self.out == forward else "receive"
        return f"{verb} between stages, {'forward' if forward else 'backward'}"


Step = Compute | Redistribute | Transfer


@dataclass(frozen=True)
class Chain:
    """List steps that run forward in order and backward in reverse.

    `back_to` is the index of the last step that the backward pass must still visit.
    """

    steps: tuple[Step, ...]
    entry: Layout
    exit: Layout
    exit_shape: Shape
    back_to: int

    @cached_property
    def feed(self) -> int | None:
        """Return the index of the redistribution that feeds a round; None where there is none.

        It may start while another round computes, and so may what comes before it. That must
        have no weights: they may change between rounds, and their gradients count once a round.
        """
        for at, step in enumerate(self.steps):
            if isinstance(step, Redistribute):
                return at
            if isinstance(step, Compute) and step.weights:
                return None
        return None


@dataclass(frozen=True)
class Round:
    """Describe one run of the head on a part of the batch: `rows` of the body's local output.

    `labels` are the places in the global batch of the rows on which this rank has the loss.
    """

    rows: slice
    count: int
    chain: Chain
    labels: Positions


@dataclass(frozen=True)
class WeightLayout:
    """Describe where a parameter or buffer lives between steps, and how layers compute with it.

    `fetch` carries it from `home` to `use`; `bring` carries its gradient, which arrives in the
    dual of `use`, home.
    """

    name: str
    param: Param
    home: Layout
    use: Layout
    fetch: tuple[Hop, ...]
    bring: tuple[Hop, ...]
    buffer: bool

    @property
    def summed(self) -> tuple[int, ...]:
        """Return the mesh axes over which `bring` is one plain all-reduce; () where it is not."""
        plain = all(
            isinstance(h.move.src, Partial) and isinstance(h.move.dst, Replicated)
            for h in self.bring
        )
        return tuple(h.axis for h in self.bring) if plain else ()


@dataclass(frozen=True)
class MicroBatch:
    """Describe what one rank does with one part of the batch.

    The body runs forward once; then every round runs the head forward and backward; then the body
    runs backward. The head is the fully connected segment and the loss, or what of it lies in the
    last pipeline stage; other stages have no rounds. `rows` index the examples that this rank
    reads.
    """

    rows: slice
    body: Chain
    rounds: tuple[Round, ...]

    @property
    def learns(self) -> bool:
        """Say whether the gradient of the body's output is wanted."""
        return self.body.back_to < len(self.body.steps)

    @property
    def passes(self) -> Iterator[tuple[Chain, int]]:
        """Yield every chain with the last step that its backward pass visits."""
        yield self.body, self.body.back_to
        for part in self.rounds:
            yield part.chain, 0 if self.learns else part.chain.back_to


@dataclass(frozen=True)
class Program:
    """Describe what one rank does in one training step of a batch of `count` examples.

    `order` holds ("F", i) and ("B", i): the body of micro-batch i forward; its head, and its body
    backward. `positions` are the examples of the batch that this rank reads.
    """

    count: int
    positions: Positions
    micro_batches: tuple[MicroBatch, ...]
    order: tuple[tuple[str, int], ...]
    weights: tuple[WeightLayout, ...]

    @property
    def answers(self) -> Positions:
        """Return the places in the batch of the examples on which this rank has the loss."""
        parts = [part.labels for micro in self.micro_batches for part in micro.rounds]
        return np.concatenate([np.zeros(0, np.int64), *parts])
