"""Write down the operations of some layers on some examples: forward, and back in reverse.

A value that several layers read is moved once for each layout in which they want it. Its gradient
is the sum of what comes back: contributions that lie alike are added before they travel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mpicnn.division.journey import Journey
from mpicnn.division.move import Hop
from mpicnn.division.network import Network, Reader, Value, may_join
from mpicnn.division.operations import (
    Accumulate,
    Backward,
    Call,
    Forward,
    Loss,
    Operation,
    Positions,
    Slot,
)
from mpicnn.division.placement import Layout
from mpicnn.division.plan import LOSS
from mpicnn.layers.activation import ReLU

OWN: Layout = ()
"""Stands for the layout in which a value lies."""


@dataclass
class Contributions:
    """Count what is still to be added to a gradient in one layout; `slot` holds the sum so far."""

    missing: int
    slot: Slot | None = None


Key = tuple[int, Layout]


class Segment:
    """Write the operations of the layers `indices` for the examples at `positions` of the batch.

    `values` are known when it begins, by number. Operations go to the list `ops`, which whoever
    calls may change in between. `outside` says of which values gradients come from elsewhere too,
    and how many times.
    """

    def __init__(
        self,
        network: Network,
        indices: range,
        values: dict[int, Value],
        positions: Positions,
        outside: Counter[int],
        loss: bool = False,
    ) -> None:
        self.network, self.indices, self.positions = network, indices, positions
        micro = network.layouts.plan.batch_norm == "micro"
        self.together = positions.size if micro else network.count
        self.model, self.layouts = network.model, network.layouts
        self.values = dict(values)
        self.ops: list[Operation] = []
        self.lying = network.lie_all(values, indices)
        self.readers: dict[int, list[Reader]] = {}
        for index in indices:
            lies, name = self.lying[index], self.model.layers[index][0]
            for value, layout in zip(self.model.sources[index], lies.x, strict=True):
                self.readers.setdefault(value, []).append(Reader(name, layout))
        if loss:
            logits = self.lying[indices[-1]].y if indices else values[indices.stop]
            self.readers.setdefault(indices.stop, []).append(network.loss(logits))
        self.copies: dict[Key, Journey] = {}
        self.returning: dict[int, list[Journey]] = {}
        self.saved: dict[int, Forward] = {}
        self.outside = outside
        self.sums: dict[Key, Contributions] = {}

    def begin(self, value: int) -> None:
        """Start to carry a value to every other layout in which a layer reads it."""
        held = self.values[value]
        for reader in self.readers.get(value, []):
            hops = self._route(held, reader.layout)
            if hops and (value, reader.layout) not in self.copies:
                way = self._depart(reader.name, hops, held.slot, back=False)
                self.copies[value, reader.layout] = way

    def _route(self, value: Value, layout: Layout) -> tuple[Hop, ...]:
        return self.layouts.route(value.shape, value.layout, layout)

    def _depart(self, name: str, hops: tuple[Hop, ...], slot: Slot, back: bool) -> Journey:
        """Start what carries an array over hops, up to the last of them."""
        way = Journey(name, hops, (slot, *(self.network.slot() for _ in hops)), back)
        self.ops += [*way.begin(), *way.advance()]
        return way

    def _arrive(self, way: Journey) -> Slot:
        """Wait for the end of what has begun and return where it is."""
        self.ops += way.end()
        return way.slots[-1]

    def fetch(self, value: int, layout: Layout) -> Slot:
        """Return the slot of a value in a layout, waiting for it where it is on its way."""
        copy = self.copies.get((value, layout))
        return self._arrive(copy) if copy else self.values[value].slot

    def forward(self, indices: Iterable[int]) -> None:
        """Write the forward pass of some of the layers."""
        for index in indices:
            lying = self.lying[index]
            x = tuple(map(self.fetch, self.model.sources[index], lying.x))
            y, saved = self.network.slot(), self.network.slot()
            self.values[index + 1] = lying.y._replace(slot=y)
            call = self._call(index)
            use = {short: self.network.use[full] for short, full in call.weights.items()}
            learns = self.model.learns[index + 1]
            done = Forward(call, x, y, saved if learns else None, use)
            self.ops.append(done)
            if learns:
                self.saved[index] = done
            self.begin(index + 1)

    def lose(self) -> None:
        """Write the loss of the logits, which have been computed."""
        last = len(self.model.layers)
        (reader,) = (reader for reader in self.readers[last] if reader.name == LOSS)
        x, dx = self.fetch(last, reader.layout), self.network.slot()
        self.ops.append(Loss(x, dx, self.positions, reader.layout))
        if self.model.learns[last]:
            self.contribute(last, reader.layout, dx)

    def contribute(self, value: int, layout: Layout, slot: Slot) -> None:
        """Add an array to the gradient of a value, in the dual of the layout in which it was read.

        What is complete in another layout than the value's own sets out.
        """
        copy = self.copies.get((value, layout))
        key = (value, layout if copy else OWN)
        if key not in self.sums:
            self.sums[key] = Contributions(self._expected(*key))
        found = self.sums[key]
        if found.slot is None:
            found.slot = slot
        else:
            total = self.network.slot()
            self.ops.append(Accumulate(slot, found.slot, total))
            found.slot = total
        found.missing -= 1
        if copy and not found.missing:
            hops = tuple(hop.adjoint for hop in reversed(copy.hops))
            back = self._depart(copy.name, hops, found.slot, back=True)
            self.returning.setdefault(value, []).append(back)

    def _expected(self, value: int, layout: Layout) -> int:
        """Return how many contributions a value's gradient has in one layout."""
        copied = [r.layout for r in self.readers.get(value, []) if (value, r.layout) in self.copies]
        if layout != OWN:
            return copied.count(layout)
        near = len(self.readers.get(value, [])) - len(copied)
        return near + len(set(copied)) + self.outside[value]

    def gradient(self, value: int) -> Slot:
        """Return the slot of a value's whole gradient, waiting for what is on its way."""
        for copy in self.returning.pop(value, []):
            self.contribute(value, OWN, self._arrive(copy))
        found = self.sums[value, OWN]
        assert found.slot is not None and not found.missing
        return found.slot

    def backward(self, indices: Sequence[int]) -> None:
        """Write the backward pass of some of the layers, given in the order of the forward pass."""
        for index in reversed(indices):
            if index not in self.saved:
                continue
            dy = self.gradient(index + 1)
            done = self.saved.pop(index)
            call, saved = done.call, done.saved
            assert saved is not None
            x = done.x if "x" in call.layer.reads else ()
            y = done.y if "y" in call.layer.reads else None
            wanted = [self.model.learns[value] for value in self.model.sources[index]]
            dx = tuple(self.network.slot() if want else None for want in wanted)
            grads = {
                short: self.network.grads[full]
                for short, full in call.weights.items()
                if full in self.network.grads
            }
            self.ops.append(Backward(call, dy, dx, saved, done.use, grads, x, y))
            places = zip(self.model.sources[index], self.lying[index].x, dx, strict=True)
            for value, layout, slot in places:
                if slot is not None:
                    self.contribute(value, layout, slot)

    def _call(self, index: int) -> Call:
        x_shapes = tuple(self.values[value].shape for value in self.model.sources[index])
        lying = self.lying[index]
        call = self.network.call(index, x_shapes, lying, self.together, self._joined(index))
        return call._replace(positions=self.positions)

    def _joined(self, index: int) -> bool:
        """Say whether a layer goes forward in one pass with the one before it, or behind it."""
        at = index - 1 if type(self.model.layers[index][1]) is ReLU else index
        before, behind = self.lying.get(at), self.lying.get(at + 1)
        return (
            before is not None
            and behind is not None
            and may_join(self.model, at)
            and not self._route(before.y, behind.x[0])
        )
