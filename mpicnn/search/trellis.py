"""All plans of a frame as paths through states, and the best of them under additive costs.

States are the layouts of the values that are alive between two layers, steps the letters of a
layer. Dynamic programming over it is exact for a cost that is a sum over the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from heapq import merge
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpicnn.division.plan import INPUT, LOSS, LayerPlan, Plan
from mpicnn.forecast.durations import Times
from mpicnn.search.states import State, States

MOST_STATES = 3000
"""Between two layers; of more, those are kept that have cost least so far."""


class Stratum(NamedTuple):
    """Hold the steps over one layer, in the order of the states they lead to.

    `before` and `after` are numbers of states, `price` those of prices, `first` the place of the
    first step to each state.
    """

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    price: NDArray[np.int64]
    splits: tuple[str, ...]
    first: NDArray[np.int64]


class Path(NamedTuple):
    """Hold a plan as the steps it takes, and what they cost."""

    cost: float
    steps: tuple[int, ...]


@dataclass
class Trellis:
    """Hold the steps of all layers and the loss. `exact` says that no state was left out."""

    states: States
    inputs: tuple[str, ...]
    strata: list[Stratum]
    exact: bool

    @cached_property
    def additive(self) -> Times:
        """Return the additive cost of every price, s."""
        return np.array([price.additive for price in self.states.priced])

    @cached_property
    def loads(self) -> Times:
        """Return the loads of every price: (prices, loads, ranks)."""
        return np.stack([price.loads for price in self.states.priced])

    @cached_property
    def held(self) -> Times:
        """Return the bytes that the fullest rank holds of each price's layer."""
        return np.array([price.held.max() for price in self.states.priced])

    def best(self, costs: list[Times]) -> Path:
        """Return the cheapest path, given what each price costs in every stratum."""
        here = np.zeros(len(self.inputs))
        chosen = []
        for stratum, cost in zip(self.strata, costs, strict=True):
            total = here[stratum.before] + cost[stratum.price]
            here = np.minimum.reduceat(total, stratum.first)
            hits = np.flatnonzero(total == here[stratum.after])
            took = np.empty(here.size, np.int64)
            took[stratum.after[hits[::-1]]] = hits[::-1]  # the first of equal ones
            chosen.append(took)
        state, steps = 0, []
        for stratum, took in zip(reversed(self.strata), reversed(chosen), strict=True):
            steps.append(int(took[state]))
            state = int(stratum.before[steps[-1]])
        return Path(float(here[0]), tuple(reversed(steps)))

    def several(self, costs: list[Times], most: int) -> list[Path]:
        """Return the cheapest paths, at most so many, the cheapest first."""
        here: list[list[tuple[float, _Link | None]]] = [[(0.0, None)] for _ in self.inputs]
        for stratum, cost in zip(self.strata, costs, strict=True):
            added = cost[stratum.price].tolist()
            before = stratum.before.tolist()
            ends = [*stratum.first[1:].tolist(), len(added)]
            here = [
                list(
                    islice(
                        merge(
                            *(_on(here[before[step]], step, added[step]) for step in range(lo, hi)),
                            key=_cost,
                        ),
                        most,
                    )
                )
                for lo, hi in zip(stratum.first.tolist(), ends, strict=True)
            ]
        return [Path(total, _unlinked(way)) for total, way in here[0]]

    def plan(self, path: Path) -> Plan:
        """Return the plan that a path stands for."""
        names = [*(name for name, _ in self.states.model.layers), LOSS]
        layers = {INPUT: LayerPlan(self.inputs[self.strata[0].before[path.steps[0]]])}
        for name, stratum, step in zip(names, self.strata, path.steps, strict=True):
            if split := stratum.splits[step]:
                layers[name] = LayerPlan(split)
        base = self.states.plan
        return Plan(base.grid, base.shares, layers, base.scheme, base.sync, base.name)

    def prices(self, path: Path) -> list[int]:
        """Return the numbers of a path's prices, layer by layer."""
        pairs = zip(self.strata, path.steps, strict=True)
        return [int(stratum.price[step]) for stratum, step in pairs]


class _Link(NamedTuple):
    """Hold the last step of a path, and the path before it."""

    step: int
    before: _Link | None


def _cost(way: tuple[float, _Link | None]) -> float:
    return way[0]


def _on(
    ways: list[tuple[float, _Link | None]], step: int, cost: float
) -> Iterator[tuple[float, _Link]]:
    """Yield ways with one more step."""
    return ((total + cost, _Link(step, way)) for total, way in ways)


def _unlinked(way: _Link | None) -> tuple[int, ...]:
    steps: list[int] = []
    while way is not None:
        steps.append(way.step)
        way = way.before
    return tuple(reversed(steps))


def build(states: States, most: int = MOST_STATES) -> Trellis | None:
    """Return all paths of a frame; None where no plan of it fits the network."""
    first = list(states.first())
    now: dict[State, int] = {state: at for at, (state, _) in enumerate(first)}
    so_far = [0.0] * len(now)
    strata, exact = [], True
    for index in range(len(states.model.layers) + 1):
        rows: list[tuple[int, int, int, str]] = []
        after: dict[State, int] = {}
        least: list[float] = []
        for state, at in now.items():
            for step in states.steps(index, state):
                number = after.setdefault(step.state, len(after))
                rows.append((number, at, step.price, step.split))
                cost = so_far[at] + states.priced[step.price].additive
                if number == len(least):
                    least.append(cost)
                least[number] = min(least[number], cost)
        if not rows:
            return None
        if len(after) > most:
            exact = False
            kept = sorted(range(len(after)), key=least.__getitem__)[:most]
            numbers = {old: new for new, old in enumerate(kept)}
            rows = [(numbers[r[0]], *r[1:]) for r in rows if r[0] in numbers]
            after = {s: numbers[n] for s, n in after.items() if n in numbers}
            after = dict(sorted(after.items(), key=lambda item: item[1]))
            least = [least[old] for old in kept]
        rows.sort(key=lambda row: row[0])
        strata.append(_stratum(rows))
        now, so_far = after, least
    return Trellis(states, tuple(split for _, split in first), strata, exact)


def _stratum(rows: list[tuple[int, int, int, str]]) -> Stratum:
    after, before, price = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    first = np.flatnonzero(np.diff(after, prepend=-1))
    return Stratum(before, after, price, tuple(row[3] for row in rows), first)
