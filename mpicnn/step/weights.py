"""Fetch parameters from where they live to where layers compute with them."""

from __future__ import annotations

from collections.abc import Iterable

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.redistribution import Redistribution
from mpicnn.division.program import Compute, WeightLayout
from mpicnn.step.state import Arrays, State
from mpicnn.step.timing import StepTimer


class FetchedWeights:
    """Hold the parameters as layers compute with them; fetch those that live elsewhere at once."""

    def __init__(
        self, mesh: Mesh, timer: StepTimer, weights: Iterable[WeightLayout], state: State
    ) -> None:
        self.mesh = mesh
        self.timer = timer
        self.state = state
        self.buffers = state.buffers
        self.here: Arrays = {}
        self.in_flight: dict[str, Redistribution] = {}
        self.weights = {weight.name: weight for weight in weights}
        self.refresh(self.weights)

    def refresh(self, names: Iterable[str]) -> None:
        """Fetch the named parameters again, after they have changed at home."""
        for name in names:
            weight = self.weights[name]
            value = (self.state.buffers if weight.buffer else self.state.params)[name]
            if weight.fetch:
                self.in_flight[name] = Redistribution(self.mesh, weight.fetch, value)
            else:
                self.here[name] = value

    def of(self, item: Compute) -> Arrays:
        """Return a layer's parameters and buffers by their short names, waiting where needed."""
        for name in item.weights.values():
            if name in self.in_flight:
                waiting = self.timer.begin(item.name, "communication", "its weights")
                redistribution = self.in_flight.pop(name)
                self.here[name] = redistribution.wait()
                self.timer.transferred(
                    name, redistribution.pending.began, redistribution.pending.ended
                )
                self.timer.end(waiting)
        return {short: self.here[name] for short, name in item.weights.items()}
