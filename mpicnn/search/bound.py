"""What no plan of a frame can undercut: mixtures of loads that a step cannot run beside each other.

A *course* is a way through a step that every rank takes in order: layers forward, layers backward
down to layer p, then what its host's link carries of the gradients behind that. All on a course
happens one after the other under any plan, so its length, a sum over the layers, is never above the
timeline; nor is a weighted mean of such lengths over courses and ranks. The least of a mean over
all plans is found exactly (`trellis`), and weights that make it large by multiplicative updates
(Freund and Schapire 1999, "Adaptive game playing using multiplicative weights"): the bound is valid
for any weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpicnn.forecast.durations import Times
from mpicnn.search.prices import Load
from mpicnn.search.states import GROUPS
from mpicnn.search.trellis import Path, Trellis

MOST_TURNS = 8
"""Layers behind whose pass backward a course may turn to the links."""
MOST_FETCHES = 3
"""Layers up to which a course may begin with the links."""
STEPS = 60
RATE = 8.0
"""How often weights are changed."""


@dataclass(frozen=True)
class Bound:
    """Hold a lower bound of a frame's plans, s, and the plans that were met on the way to it."""

    seconds: float
    paths: tuple[Path, ...]


class Courses:
    """Know which loads of which layers each course has: float (courses, strata, loads)."""

    def __init__(self, trellis: Trellis) -> None:
        self.trellis, states = trellis, trellis.states
        self.model, self.frame = states.model, states.frame
        self.rounds_from = states.rounds_from
        self.table = np.stack(list(self._courses()))

    def _courses(self) -> list[NDArray[np.float64]]:
        layers = np.arange(len(self.model.layers) + 1)
        whole = np.zeros((layers.size, len(Load)))
        own = [Load.FORWARD, Load.BACKWARD, Load.RETURN, Load.JOURNEY, Load.UPDATE]
        whole[:, own] = 1
        found = [whole]
        turns = self._turns()
        fetches = [0, *turns[-MOST_FETCHES:]] if self.frame.sync == "sharded" else [0]
        for fetch in fetches:
            for turn in turns:
                course = np.zeros_like(whole)
                course[:, Load.UPDATE] = 1
                course[layers >= fetch, Load.FORWARD] = 1
                course[layers <= fetch, Load.FETCH] = fetch > 0
                course[layers >= turn, Load.BACKWARD] = 1
                course[layers > turn, Load.RETURN] = 1
                course[layers <= turn, Load.LINK] = 1
                course[turn, Load.FIRST if turn == turns[0] else Load.LAST] = 1
                found.append(course)
        return found

    def _turns(self) -> list[int]:
        """Return layers with weights, the first among them, that part these about evenly."""
        layers = self.model.layers
        learning = [
            at
            for at, (name, layer) in enumerate(layers)
            if at < self.rounds_from and name not in self.model.frozen
            and layer.params(self.model.fed[at])
        ]  # fmt: skip
        if len(learning) <= MOST_TURNS:
            return learning
        places = np.linspace(0, len(learning) - 1, MOST_TURNS).round().astype(int)
        return [learning[at] for at in places]

    @cached_property
    def _alike(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the different columns of the table, and which of them each stratum has."""
        columns, place = np.unique(self.table, axis=1, return_inverse=True)
        return columns, place.ravel()

    def constant(self) -> Times:
        """Return what every course has beside the layers: (courses, ranks)."""
        states = self.trellis.states
        start, model = states.prices.start, self.model
        found = np.tile(2 * start, (len(self.table), 1))  # the loss, the update
        learns = [value for value, wanted in enumerate(model.learns) if wanted]
        found[0] += sum(model.readers[value] - 1 for value in learns) * start
        return found

    def costs(self, weights: Times) -> list[Times]:
        """Return what each price costs in each stratum under weights (courses, groups, ranks)."""
        columns, place = self._alike
        prices = self.trellis.states.priced
        groups = np.array([price.group for price in prices])
        mixed = np.einsum("cgr,cul->gulr", weights, columns)
        found = np.empty((columns.shape[1], len(prices)))
        for group, each in enumerate(mixed.reshape(*mixed.shape[:2], -1)):
            here = groups == group
            if not here.any():
                continue
            found[:, here] = each @ self.trellis.loads[here].reshape(int(here.sum()), -1).T
        return list(found[place])

    def lengths(self, path: Path) -> Times:
        """Return what every group of layers adds to every course of a plan on every rank: (courses,
        groups, ranks)."""
        prices = self.trellis.prices(path)
        groups = np.array([self.trellis.states.priced[price].group for price in prices])
        member = groups == np.arange(GROUPS)[:, None]
        return np.einsum(
            "csl,slr,gs->cgr", self.table, self.trellis.loads[prices], member, optimize=True
        )


def bound(trellis: Trellis, speed: Times, enough: float = np.inf) -> Bound:
    """Return a lower bound of all plans of a frame, and stop where it is `enough`, s.

    `speed` are those of the ranks alone.
    """
    courses = Courses(trellis)
    constant = courses.constant().min(axis=1)
    best, paths = 0.0, []
    course = np.zeros(len(courses.table))
    rank = np.tile(np.log(speed / speed.sum()), (len(courses.table), GROUPS, 1))
    for step in range(STEPS):
        part = _softmax(course)
        weights = part[:, None, None] * _softmax(rank)
        path = trellis.best(courses.costs(weights))
        seconds = path.cost + float(part @ constant)
        best = max(best, seconds)
        paths.append(path)
        lengths = courses.lengths(path)
        longest = lengths.max(axis=2).sum(axis=1) + constant
        if best >= enough or longest.max() <= best * (1 + 1e-3):
            break
        rate = RATE / (1 + step) ** 0.5 / longest.max()
        course += rate * ((weights * lengths).sum(axis=(1, 2)) / part + constant)
        rank += rate * lengths
    return Bound(best, tuple({path.steps: path for path in paths}.values()))


def _softmax(score: Times) -> Times:
    """Return weights that sum to 1 over the last axis."""
    found = np.exp(score - score.max(axis=-1, keepdims=True))
    return found / found.sum(axis=-1, keepdims=True)
