"""What a way to divide one layer costs by itself: its own part of a sum over all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import ceil, log2
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpicnn.division.layout import Layouts
from mpicnn.division.move import Hop
from mpicnn.division.network import Network, Value, may_join
from mpicnn.division.operations import Call
from mpicnn.division.placement import Layout
from mpicnn.division.program import GlobalProgram, WeightLayout
from mpicnn.division.propagation import LayerDivision
from mpicnn.forecast.durations import Rated, Times
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.memory import KEPT
from mpicnn.forecast.traffic import Alone, Exchange, Traffic, batch_sums, carried, summed
from mpicnn.search.frames import Frame

if TYPE_CHECKING:
    from mpicnn.models import Model


class Load(IntEnum):
    """Name what keeps a rank, or the link of its host, busy in a step (`mpicnn.search.bound`)."""

    FORWARD = 0
    """A layer's pass forward, and the moves before it that nothing overlaps."""
    BACKWARD = 1
    """Its pass backward."""
    RETURN = 2
    """The moves behind that which nothing overlaps."""
    LINK = 3
    """What the host's link carries behind the pass backward: moves, and gradients of weights."""
    JOURNEY = 4
    """What the core does for weights on their way there, and at least for gradients coming back."""
    FETCH = 5
    """What the host's link carries at the beginning of the step: weights."""
    UPDATE = 6
    """How long the change of its weights takes at least."""
    FIRST = 7
    """By how much the gradients of its weights arrive later than the links have carried them."""
    LAST = 8
    """The same at least for any layer's weights."""


Loads = Times
"""An amount of every `Load` for every rank, s: (len(Load), ranks)."""


@dataclass(frozen=True)
class Price:
    """Say what a layer costs under a division: `additive` in s, `loads`, and `held` bytes.

    `additive` is the time of its busiest rank and of all that travels, one after the other. `group`
    tells layers apart between which ranks wait for each other.
    """

    additive: float
    loads: Loads
    held: Times
    group: int = 0


class Way(NamedTuple):
    """Say what it costs to carry a value into a layout, and its gradient back: (ranks,) each.

    `took` and `busy` are those of the way there, `back` the time of the way back, `link` how long
    that keeps the links. `meets` says that ranks wait for each other on both ways.
    """

    additive: float
    took: Times
    busy: Times
    back: Times
    link: Times
    meets: bool


class Divided(NamedTuple):
    """Hold how a layer wants each of its inputs, what it gives (for every run of the layer on a
    part of the batch), and its price."""

    wanted: tuple[tuple[Layout, ...], ...]
    values: tuple[Value, ...]
    price: Price


class Prices:
    """Price the layers of a network that are divided as a frame says."""

    def __init__(
        self, model: Model, frame: Frame, count: int, machine: Machine, itemsize: int
    ) -> None:
        self.model, self.frame, self.count, self.itemsize = model, frame, count, itemsize
        self.machine, self.ranks = machine, len(machine.devices)
        self.rates = machine.rates.on(frame.grid)
        self.hosts = np.array(machine.hosts).reshape(frame.grid)
        self.network = Network(model, Layouts(frame.plan), {}, count)
        for (name, layer), fed in zip(model.layers, model.fed, strict=True):
            specs = layer.params(fed) | layer.buffers(fed)
            self.network.weights[name] = {short: f"{name}.{short}" for short in specs}

    @cached_property
    def start(self) -> Times:
        """Return the seconds that any operation takes at least: (ranks,)."""
        return self.rates.start.ravel()

    def layer(
        self, index: int, division: LayerDivision, fed: Sequence[tuple[Value, ...]], near: bool
    ) -> Divided:
        """Return what a layer makes of its inputs, `fed` for each of its runs.

        `near` marks a layer behind a contraction that reads its output without a move.
        Raises UserError where its channels are too few for the ranks that share them.
        """
        name, layer = self.model.layers[index]
        self.network.divisions[name] = division
        found = []
        for values in fed:
            known = dict(zip(self.model.sources[index], values, strict=True))
            found.append(self.network.lie(known, index))
        weights = tuple(self._weights(index, division, found[0].x[0], found[0].y.layout))
        program = GlobalProgram(self.frame.grid, self.count, (), (), 0, weights, {}, {})
        rated = Rated(program, self.rates, self.itemsize)
        joined = near and may_join(self.model, index - 1)
        calls = [
            self.network.call(
                index, tuple(value.shape for value in values), lies, self.count, joined
            )
            for values, lies in zip(fed, found, strict=True)
        ]
        price = self._price(index, rated, calls, weights)
        wanted = tuple(zip(*(lies.x for lies in found), strict=True))
        return Divided(wanted, tuple(lies.y for lies in found), price)

    def _weights(
        self, index: int, division: LayerDivision, x: Layout, y: Layout
    ) -> Iterable[WeightLayout]:
        (name, layer), fed = self.model.layers[index], self.model.fed[index]
        for specs, buffer in ((layer.params(fed), False), (layer.buffers(fed), True)):
            for short, param in specs.items():
                yield self.network.layouts.weight(
                    f"{name}.{short}", param, division, x, y, buffer
                )  # fmt: skip

    def _price(
        self, index: int, rated: Rated, calls: Sequence[Call], weights: Sequence[WeightLayout]
    ) -> Price:
        loads = np.zeros((len(Load), self.ranks))
        additive, counter = 0.0, rated.counter
        held = np.zeros(self.ranks)
        for call in calls:
            passes = [(Load.FORWARD, 0)]
            if self.model.learns[index + 1]:
                passes.append((Load.BACKWARD, 1))
                held += self._all(counter.items(call.y_shape, call.y_layout))
            for load, way in passes:
                took = self._all(rated.layer(call, way))
                loads[load] += took
                additive += float(took.max())
                if call.sum_axes and any(call.batch_sums) and (not way or call.need_dx):
                    what, taking_part = batch_sums(counter, call, way)
                    if taking_part.any():
                        took = self.alone(what).took * taking_part.ravel()
                        loads[load] += took
                        additive += float(took.max())
        for weight in weights:
            share = 1 if weight.buffer else KEPT
            held += share * self._all(counter.items(weight.param.shape, weight.home))
            held += (bool(weight.fetch) + weight.learns) * self._all(counter.here[weight.name])
        additive += self._journeys(rated, [w for w in weights if w.learns], loads)
        return Price(additive, loads, held * self.itemsize)

    def _journeys(self, rated: Rated, weights: Sequence[WeightLayout], loads: Loads) -> float:
        """Add the loads of the ways of weights and gradients, and of the update; return the
        seconds of all that one after the other."""
        additive = 0.0
        messages = []
        for weight in weights:
            there = [self._hop(rated, hop) for hop in weight.fetch if not hop.move.local]
            if there and not weight.fetch[0].move.local:
                loads[Load.FETCH] += there[0].link
            if weight.summed:
                what = summed(rated.counter, [weight.name], weight.summed)
                # several sums may be one message: only their bytes add up
                bytes_alone = self.alone(what._replace(steps=0))
                loads[Load.JOURNEY] += bytes_alone.busy.min()
                loads[Load.LINK] += bytes_alone.own
                home = [self.alone(what)]
            else:
                home = [self._hop(rated, hop) for hop in weight.bring if not hop.move.local]
                loads[Load.JOURNEY] += np.min(sum(each.busy for each in home))
                loads[Load.LINK] += sum((each.link for each in home), np.zeros(self.ranks))
            loads[Load.JOURNEY] += sum((each.busy for each in there), np.zeros(self.ranks))
            messages += home
            additive += sum(float(each.took.max()) for each in (*there, *home))
        update = self._all(rated.update([w.name for w in weights])) - self.start if weights else 0
        loads[Load.UPDATE] += np.min(update)
        self._late(messages, loads)
        return additive + float(np.max(update))

    def _late(self, messages: Sequence[Alone], loads: Loads) -> None:
        """Add how much later gradients arrive than links have carried them."""
        if not messages:
            return
        crossing = [each.late > 0 for each in messages]
        late = np.min(
            [np.where(c, m.late, np.inf) for c, m in zip(crossing, messages, strict=True)], axis=0
        )
        near = np.max(
            [np.where(m.link > 0, 0, m.took) * ~c for c, m in zip(crossing, messages, strict=True)],
            axis=0,
        )
        loads[Load.FIRST] = np.where(np.isfinite(late), late, near)
        least = min(n for n in self.frame.grid if n > 1)
        steps = ceil(log2(least))
        loads[Load.LAST] = np.isfinite(late) * steps * self.machine.between.latency

    def way(self, values: Sequence[Value], wanted: Sequence[Layout], back: bool) -> Way | None:
        """Return what it costs to carry a value into a layout, each of its parts; None: nothing.

        `back` says whether its gradient comes back.
        """
        routes = [
            self.network.layouts.route(value.shape, value.layout, layout)
            for value, layout in zip(values, wanted, strict=True)
        ]
        if not any(routes):
            return None
        moves = [[hop for hop in route if not hop.move.local] for route in routes]
        returns = [[h.adjoint for h in route if not h.adjoint.move.local] for route in routes]
        meets = all(moves) and (not back or all(returns))
        there = [self._moved(hop) for route in moves for hop in route]
        home = [self._moved(hop) for route in returns for hop in route if back]
        zeros = np.zeros(self.ranks)
        return Way(
            sum(float(each.took.max()) for each in (*there, *home)),
            sum((each.took for each in there), zeros),
            sum((each.busy for each in there), zeros),
            sum((each.took for each in home), zeros),
            sum((each.link for each in home), zeros),
            meets,
        )

    @cached_property
    def _counting(self) -> Rated:
        program = GlobalProgram(self.frame.grid, self.count, (), (), 0, (), {}, {})
        return Rated(program, self.rates, self.itemsize)

    def _moved(self, hop: Hop) -> Alone:
        return self._hop(self._counting, hop)

    def _hop(self, rated: Rated, hop: Hop) -> Alone:
        return self.alone(carried(rated.counter, hop))

    def alone(self, what: Exchange) -> Alone:
        """Return what a collective costs where nothing else travels: (ranks,) each."""
        return Alone(*(each.ravel() for each in Traffic(self.machine).alone(self.hosts, what)))

    def _all(self, amount: object) -> Times:
        return np.broadcast_to(np.asarray(amount, float), self.frame.grid).ravel()
