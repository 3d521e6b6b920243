"""A plan as plain data: which strategy, shares and home every layer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import get_args

from mpicnn.settings.choices import Normalised, Order, Scheme, Sync

Shares = tuple[float, ...]

SCHEMES = get_args(Scheme)
SYNCS = get_args(Sync)
ORDERS = get_args(Order)
NORMALISED = get_args(Normalised)
HOMES = ("use", "first")
INPUT, LOSS = "input", "loss"


@dataclass(frozen=True)
class LayerPlan:
    """Say how one layer is divided.

    `split` has one letter per mesh axis (`mpicnn.division.strategy`); `shares` one tuple of weights
    per axis, or None for the plan's own; `home` where its parameters live between steps: "use", as
    they are computed with, or "first", on the first rank, from where they travel every step
    (Marques, algorithm 1).
    """

    split: str
    shares: tuple[Shares, ...] | None = None
    home: str = "use"


@dataclass(frozen=True)
class Plan:
    """Divide a network's work over a grid of ranks.

    `grid` is the mesh: one length per axis. `shares` holds one weight per rank for every axis;
    0 leaves a rank without work on purpose. `layers` names the layers divided by hand or by a
    preset, besides "input" (which examples a rank reads; letter r: all of them) and "loss"; a
    layer that is not named follows the layout it finds, or is divided by the batch where it
    cannot. `scheme` is OWT's way to feed the fully connected segment: (a) one round over the
    assembled batch, (b) one round per rank on that rank's examples, (c) as many rounds, each on a
    part of every rank's examples. `sync` says how replicated parameters are kept equal:
    "allreduce", or "sharded": the gradient is reduce-scattered, every rank updates its own part
    and the parts are gathered at the next step (OWT).

    `stages` names the first layer of every pipeline stage after the first (survey): each stage has
    a grid of its own, and the batch passes through in `micro_batches` parts, in the order "1f1b"
    or "gpipe" (`mpicnn.division.schedule`). With `batch_norm` "micro" batch norm takes its
    statistics of each of them; else ("batch") a network with batch norm has one alone.
    """

    grid: tuple[int, ...]
    shares: tuple[Shares, ...]
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    scheme: str = "a"
    sync: str = "allreduce"
    name: str = "data"
    stages: tuple[str, ...] = ()
    micro_batches: int = 1
    order: str = "1f1b"
    batch_norm: str = "batch"

    def text(self, most: int = 64) -> str:
        """Return the plan's name, what differs from its defaults, and its shares where unequal.

        Of more than `most` shares it is only said that they are unequal.
        """
        words = [self.name]
        if self.scheme != "a":
            words.append(f"scheme ({self.scheme})")
        if self.sync != "allreduce":
            words.append(f"{self.sync} weights")
        if len(self.grid) > 1:
            words.append(f"grid {'x'.join(map(str, self.grid))}")
        if self.stages:
            words.append(f"{self.depth} stages from {', '.join(self.stages)} ({self.order})")
        if self.micro_batches > 1:
            words.append(f"{self.micro_batches} micro-batches")
        for weights in self.shares:
            if len(set(weights)) > 1:
                parts = " + ".join(f"{100 * w / sum(weights):.1f}" for w in weights)
                words.append(f"shares {parts} %" if len(weights) <= most else "unequal shares")
        return ", ".join(words)

    @property
    def depth(self) -> int:
        """Return the number of pipeline stages."""
        return 1 + len(self.stages)

    @property
    def ranks(self) -> int:
        """Return the number of ranks that the plan divides the work over."""
        return self.depth * prod(self.grid)


def equal_shares(grid: Sequence[int]) -> tuple[Shares, ...]:
    """Return the same weight for every rank of every axis."""
    return tuple((1.0,) * n for n in grid)
