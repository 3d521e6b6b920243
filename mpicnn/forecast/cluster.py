"""A cluster as classes of nodes and links, and the machine that some of its nodes make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from mpicnn import rng
from mpicnn.errors import UserError
from mpicnn.forecast.machine import Device, Link, Machine

MOST_RANKS = 1 << 16
"""For more the arrays of a timeline take gigabytes."""

SHARED_MEMORY = Link(latency=2e-6, bandwidth=5e9, busy=1.0)
"""What joins the ranks of a node unless the file says it: cores that copy."""

SIGMAS = 2.0
"""How far from its middle a range of speeds ends, in standard deviations."""


@dataclass(frozen=True)
class NodeClass:
    """Describe nodes that are alike: the `device` of each of their `ranks`.

    A class has either `count` nodes, or a `weight`: its part in what the counted ones leave.
    `watts` are what a node takes while it is part of a job, `memory` its bytes; 0 says nothing.
    `vary` is the range of the factor by which a node's rates differ from the class's.
    """

    name: str
    device: Device
    ranks: int = 1
    count: int = 0
    weight: float = 0.0
    watts: float = 0.0
    memory: float = 0.0
    vary: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Cluster:
    """Describe a cluster: its classes of nodes, the link inside a node and that between nodes."""

    name: str
    classes: tuple[NodeClass, ...]
    between: Link
    inside: Link = SHARED_MEMORY

    @property
    def counted(self) -> int:
        """Return how many nodes are there if all classes have a count; else 0."""
        return sum(c.count for c in self.classes) if all(c.count for c in self.classes) else 0

    def nodes(self, count: int) -> list[NodeClass]:
        """Return the class of each of the first `count` nodes.

        Where all classes have a count, every next node is of the class that has least of what its
        proportion gives it, of several such the first in the file. So the first nodes are always
        as mixed as the cluster, all are there once at its full size, and a larger cluster goes on
        in the same proportions. Where some classes have a weight, the counted nodes come first, in
        the order of the file, and the weights rule the rest. The first n nodes are the same in a
        cluster of any size.
        """
        weighted = [c for c in self.classes if c.weight]
        first = [c for c in self.classes if c.count] if weighted else []
        counted = list(chain.from_iterable(repeat(c, c.count) for c in first))
        rest = weighted or list(self.classes)
        order = _mixed([c.weight or c.count for c in rest], count - len(counted))
        return [*counted[:count], *(rest[at] for at in order)]

    def machine(self, count: int, seed: int = 0) -> Machine:
        """Return the machine of the first `count` nodes, a host each; `seed` draws their speeds.

        Raises UserError where they have too many ranks.
        """
        nodes = self.nodes(count) if count <= MOST_RANKS else []
        if not nodes or sum(node.ranks for node in nodes) > MOST_RANKS:
            raise UserError(f"nodes {count}: more than {MOST_RANKS} ranks; use fewer nodes")
        devices: list[Device] = []
        hosts: list[int] = []
        for host, (node, z) in enumerate(zip(nodes, _normal(count, seed), strict=True)):
            devices += [_faster(node, float(z))] * node.ranks
            hosts += [host] * node.ranks
        return Machine(tuple(devices), tuple(hosts), self.inside, self.between)

    def sized(self, ranks: int) -> int:
        """Return how many nodes have so many ranks together.

        Raises UserError where no number of them does.
        """
        found = 0
        for count in range(1, min(ranks, MOST_RANKS) + 1):
            found = sum(node.ranks for node in self.nodes(count))
            if found >= ranks:
                break
        if found != ranks:
            raise UserError(
                f"cluster {self.name}: no number of its nodes has {ranks} ranks; {count} have "
                f"{found}"
            )
        return count

    def watts(self, count: int) -> float:
        """Return what the first `count` nodes take together, W; 0 where the file does not say."""
        return sum(node.watts for node in self.nodes(count))

    def text(self) -> str:
        """Return which classes there are, and how many of each."""
        numbers = (f"{c.count}" if c.count else f"weight {c.weight:g}" for c in self.classes)
        parts = [f"{c.name} ({n})" for c, n in zip(self.classes, numbers, strict=True)]
        most = 6
        left = f" and {len(parts) - most} more classes" if len(parts) > most else ""
        return f"{', '.join(parts[:most])}{left}"


def _mixed(weights: Sequence[float], count: int) -> list[int]:
    """Return which class each of `count` nodes is of, each prefix in proportion to the weights.

    Of k nodes a class with the part p of all has less than p k + 1.
    """
    parts = np.array(weights, float)
    given, order = np.zeros(parts.size), []
    for number in range(1, count + 1):
        lacking = parts * number - given * parts.sum()
        order.append(int(lacking.argmax()))
        given[order[-1]] += 1
    return order


def _faster(node: NodeClass, z: float) -> Device:
    """Return the device of a node that lies `z` standard deviations from the middle of its class's
    range."""
    low, high = node.vary
    factor = (low + high) / 2 + z * (high - low) / (2 * SIGMAS)
    device = node.device
    return replace(
        device, convolution=factor * device.convolution, linear=factor * device.linear,
        memory=factor * device.memory,
    )  # fmt: skip


def _normal(count: int, seed: int) -> NDArray[np.float64]:
    """Return a number for every node, normally distributed within `SIGMAS`: (count,).

    A node's own number is the same in a cluster of any size (Box and Muller 1958, and again
    where that falls outside).
    """
    index = np.arange(count, dtype=np.int64)
    found = np.full(count, np.inf)
    attempt = 0
    while (outside := np.abs(found) > SIGMAS).any():
        draws = rng.uniform(seed, "node speed", attempt, index[outside])
        radius = np.sqrt(-2 * np.log(1 - draws[:, 0]))
        found[outside] = radius * np.cos(2 * np.pi * draws[:, 1])
        attempt += 1
    return found


def composition(nodes: Sequence[NodeClass]) -> str:
    """Return how many nodes of which class there are."""
    return " + ".join(f"{n} {name}" for name, n in Counter(node.name for node in nodes).items())
