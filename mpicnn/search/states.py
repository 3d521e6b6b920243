"""Find what each layer can make of how values are held before it, and what that costs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mpicnn.division.checks import groups_of, keeps_groups
from mpicnn.division.network import Value, may_join
from mpicnn.division.placement import Layout
from mpicnn.division.plan import LOSS
from mpicnn.division.propagation import LayerDivision
from mpicnn.division.schedule import parts
from mpicnn.division.strategy import (
    INPUT_KIND,
    LOSS_KIND,
    rows,
)
from mpicnn.errors import UserError
from mpicnn.search.choices import Choices
from mpicnn.search.prices import Divided, Load, Price, Prices, Way

BATCH_GROUP, CHANNEL_GROUP, ALONE, _NONE = 0, 1, 2, -1
GROUPS = 3

Held = tuple[int, tuple[int, ...]]
"""The number of the form of a value, and those of the layouts into which it has been carried."""


class State(NamedTuple):
    """Say how every value is held that is still read, in order, and which `group` of layers works:
    one of those that `_group` tells apart."""

    held: tuple[Held, ...]
    group: int


class Carried(NamedTuple):
    """Hold a way, what tells it from others, whether nothing else is done meanwhile, and whether
    ranks meet between the layer before and this one."""

    key: Hashable
    way: Way
    alone: bool
    meets: bool


class Next(NamedTuple):
    """Describe a step over one layer: the state behind it, the letters that the plan names for the
    layer ("": none), and the number of its price."""

    state: State
    split: str
    price: int


class States:
    """Find the states of a frame's plans, layer by layer, and price the steps between them."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.model, self.frame = prices.model, prices.frame
        self.plan = self.frame.plan
        self.priced: list[Price] = []
        self.choices = Choices(self.frame)
        self._layouts: dict[Hashable, int] = {}
        self._made: dict[Hashable, tuple[Divided, int] | None] = {}
        self._ways: dict[Hashable, Way | None] = {}
        self._steps: dict[Hashable, int] = {}
        self._crossing = [
            tuple(self.model.crossing(at)) for at in range(len(self.model.layers) + 1)
        ]

    @cached_property
    def rounds_from(self) -> int:
        """Return the first layer that runs in rounds; one behind the last where none does."""
        return self.model.fc_start if self.frame.scheme != "a" else len(self.model.layers) + 1

    @cached_property
    def _overlapped(self) -> int:
        """Return the last layer whose moves may travel while another round computes."""
        if self.frame.scheme == "a":
            return -1
        weighted = (
            at
            for at in range(self.rounds_from, len(self.model.layers))
            if self.model.layers[at][1].params(self.model.fed[at])
        )
        return next(weighted, len(self.model.layers))

    def first(self) -> Iterator[tuple[State, str]]:
        """Yield how the images may be read, and the letters that say so."""
        shape = (self.prices.count, *self.model.input_shape)
        for split in self.choices.named(INPUT_KIND):
            division = LayerDivision(rows(INPUT_KIND, split), self.frame.shares)
            layout = self.prices.network.layouts.input_layout(shape, division)
            yield (
                State(((self.choices.number(division, (Value(shape, layout),)), ()),), _NONE),
                split,
            )

    def steps(self, index: int, state: State) -> Iterator[Next]:
        """Yield the steps that a layer can make from a state; that behind the last is the loss."""
        if index == len(self.model.layers):
            yield from self._lose(index, state)
            return
        name, layer = self.model.layers[index]
        if index == self.rounds_from:
            found = self._in_rounds(state)
            if found is None:
                return
            state = found
        held = dict(zip(self._crossing[index], state.held, strict=True))
        first = held[self.model.sources[index][0]][0]
        for split, division in self.choices.options(layer.kind, name, first, layer.joins):
            if keeps_groups(layer, division.rows):
                frozen, groups = name in self.model.frozen, groups_of(layer)
                division = division._replace(frozen=frozen, groups=groups)
                yield from self._step(index, state.group, held, split, division)

    def _in_rounds(self, state: State) -> State | None:
        """Return the state in which the head is fed part by part; None where it cannot be."""
        if len(state.held) != 1:
            return None
        held = self.choices[state.held[0][0]]
        (value,) = held.values
        try:
            found = parts(self.plan, held.division, value.layout, value.shape[0])
        except UserError:
            return None
        fed = tuple(Value((p.positions.size, *value.shape[1:]), p.entry) for p in found)
        return State(((self.choices.number(held.division, fed), ()),), state.group)

    def _step(
        self, index: int, group: int, held: dict[int, Held], split: str, division: LayerDivision
    ) -> Iterator[Next]:
        sources = self.model.sources[index]
        made = self._divided(index, division, tuple(held[value][0] for value in sources))
        if made is None:
            return
        divided, y = made
        carried, paid = self._carried(index, sources, held, divided.wanted)
        if group == _NONE or any(each.meets for each in carried):
            group = self._group(division)
        price = self._price(index, divided.price, group, carried)
        after = tuple(
            (y, ()) if value == index + 1 else (held[value][0], paid[value])
            for value in self._crossing[index + 1]
        )
        yield Next(State(after, group), split, price)

    def _group(self, division: LayerDivision) -> int:
        """Return a number for layers that have the batch, the channels, or all on one rank.

        Between neighbours of different groups all ranks wait for each other, if they are one row.
        """
        if len(self.frame.grid) > 1:
            return 0
        each = division.rows[0]
        return ALONE if each.alone else BATCH_GROUP if each.shares_batch else CHANNEL_GROUP

    def _divided(
        self, index: int, division: LayerDivision, forms: tuple[int, ...]
    ) -> tuple[Divided, int] | None:
        near = self._near(index, forms[0], division)
        key = (self._alike[index], division.rows, division.follows, forms, near)
        if key not in self._made:
            runs = zip(*(self.choices[form].values for form in forms), strict=True)
            try:
                divided = self.prices.layer(index, division, list(runs), near)
            except UserError:
                self._made[key] = None
            else:
                self._made[key] = divided, self.choices.number(division, divided.values)
        return self._made[key]

    def _near(self, index: int, form: int, division: LayerDivision) -> bool:
        """Say whether a layer can be joined with the one before: no move is between the two."""
        if not index or index == self.rounds_from or not may_join(self.model, index - 1):
            return False
        layouts = self.prices.network.layouts
        return division.follows or not any(
            layouts.route(v.shape, v.layout, layouts.input_layout(v.shape, division))
            for v in self.choices[form].values
        )

    @cached_property
    def _alike(self) -> list[int]:
        """Return a number for each layer, the same for those that cost the same."""
        model = self.model
        numbers: dict[Hashable, int] = {}
        found = []
        for at, ((name, layer), sources) in enumerate(
            zip(model.layers, model.sources, strict=True)
        ):
            learns = model.learns[at + 1], any(model.learns[value] for value in sources)
            places = tuple(map(sources.index, sources))
            known = layer if isinstance(layer, Hashable) else id(layer)
            frozen = name in model.frozen
            measured = name if name in self.prices.rates.layers else ""
            joins = at and may_join(model, at - 1)
            key = (known, measured, model.fed[at], *learns, places, frozen, joins)
            found.append(numbers.setdefault(key, len(numbers)))
        return found

    def _carried(
        self,
        index: int,
        sources: Sequence[int],
        held: dict[int, Held],
        wanted: Sequence[tuple[Layout, ...]],
    ) -> tuple[list[Carried], dict[int, tuple[int, ...]]]:
        """Return the ways by which what a layer reads has to be carried, and into which layouts
        values have been carried then."""
        found, paid = [], {value: had for value, (_, had) in held.items()}
        for value, layouts in zip(sources, wanted, strict=True):
            form, back = held[value][0], self.model.learns[value]
            number = self._layouts.setdefault(layouts, len(self._layouts))
            key = (form, number, back)
            if key not in self._ways:
                self._ways[key] = self.prices.way(self.choices[form].values, layouts, back)
            way = self._ways[key]
            if way is not None and number not in paid[value]:
                # what the layer before has made is wanted at once, if not in a round
                before = value == index
                alone = before and not self.rounds_from <= index <= self._overlapped
                learns = back or not any(self.model.learns[: index + 1])
                # in rounds, ranks that meet for one may have computed for the next
                meets = before and way.meets and learns and index < self.rounds_from
                found.append(Carried((*key, alone), way, alone, meets))
                paid[value] = tuple(sorted((*paid[value], number)))
        return found, paid

    def _price(self, index: int, price: Price, group: int, carried: Sequence[Carried]) -> int:
        """Return the number of the price of a layer of a group, and of the ways of its inputs."""
        head = index >= self.rounds_from
        key = (id(price), group, tuple(each.key for each in carried), head)
        if key not in self._steps:
            loads = price.loads.copy()
            if carried:
                busy = sum(each.way.busy for each in carried)
                took = sum(each.way.took * each.alone for each in carried)
                loads[Load.FORWARD] += np.maximum(took, busy)
                loads[Load.RETURN] += sum(each.way.back * each.alone for each in carried)
                loads[Load.LINK] += sum(each.way.link for each in carried)
            if head:  # earlier rounds send before the last one goes back
                loads[[Load.LINK, Load.FIRST, Load.LAST]] = 0
            self._steps[key] = len(self.priced)
            additive = price.additive + sum(each.way.additive for each in carried)
            self.priced.append(Price(additive, loads, price.held, group))
        return self._steps[key]

    def _lose(self, end: int, state: State) -> Iterator[Next]:
        """Yield the ways in which the loss takes the logits."""
        ((form, _),) = state.held
        layouts = self.prices.network.layouts
        ranks = self.prices.ranks
        nothing = Price(0.0, np.zeros((len(Load), ranks)), np.zeros(ranks))
        group = max(0, state.group)
        for split, division in self.choices.options(LOSS_KIND, LOSS, form):
            wanted = tuple(
                v.layout if division.follows else layouts.input_layout(v.shape, division)
                for v in self.choices[form].values
            )
            carried, _ = self._carried(end, [end], {end: state.held[0]}, [wanted])
            yield Next(State((), 0), split, self._price(end, nothing, group, carried))
