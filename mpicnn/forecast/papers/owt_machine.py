"""Steps of Krizhevsky's network on the machines on which his schemes are replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from mpicnn import models
from mpicnn.division.compile import Options, compile_all
from mpicnn.division.plan import LayerPlan
from mpicnn.division.presets import preset
from mpicnn.division.program import GlobalProgram
from mpicnn.forecast.cluster import Cluster
from mpicnn.forecast.clusterfile import load_cluster
from mpicnn.forecast.cost import step_costs
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.timeline import timeline
from mpicnn.layers import Linear
from mpicnn.models import Model
from mpicnn.models.zoo import IMAGENET

NETWORK = "alexnet-owt"
IMAGES, EPOCHS = 1_281_167, 90
"""Of ImageNet 2012's training set, and of a run."""
BATCH = 128
"""Examples of a step on each GPU."""
FLOAT = 4
RESTRICTED, LAST = ("fc6", "fc7"), "fc8"
"""The fully connected layers that may be given groups, and that which joins all of them."""


@dataclass(frozen=True)
class Way:
    """Say how GPUs divide the work: the preset, OWT's scheme, whether fully connected weights
    change `by_round`, how many GPUs a row of the grid has (0: all are one row), the `groups` of
    fully connected layers, and whether each GPU has groups of its own (`apart`)."""

    plan: str = "owt"
    scheme: str = "a"
    by_round: bool = False
    row: int = 0
    groups: int = 1
    apart: bool = False

    def grid(self, gpus: int) -> tuple[int, ...]:
        """Return the grid of some GPUs."""
        return (gpus // self.row, self.row) if self.row and gpus > self.row else (gpus,)


@lru_cache
def network(groups: int = 1) -> Model:
    """Return the network, its fully connected layers but the last in so many groups."""
    model = models.load(NETWORK, *IMAGENET)
    layers = (
        (name, replace(layer, groups=groups))
        if isinstance(layer, Linear) and name in RESTRICTED
        else (name, layer)
        for name, layer in model.layers
    )
    return Model(model.name, model.input_shape, tuple(layers))


@lru_cache(maxsize=256)
def programs(gpus: int, way: Way) -> Sequence[GlobalProgram]:
    """Return what the GPUs do in a step, weights divided between them (`sharded`)."""
    model = network(way.groups)
    plan = preset(way.plan, model, way.grid(gpus), scheme=way.scheme, sync="sharded")
    if way.apart:
        outer = "n" * (len(plan.grid) - 1)
        own = {name: LayerPlan(outer + "g") for name in RESTRICTED}
        # the last takes its inputs where they are: what is added up is as long as the classes
        plan = replace(plan, layers={**plan.layers, **own, LAST: LayerPlan(outer + "c")})
    return compile_all(model, plan, BATCH * gpus, Options(by_round=way.by_round))


@lru_cache
def cluster_of(file: str) -> Cluster:
    """Return a cluster that is kept beside this file."""
    return load_cluster(str(Path(__file__).with_name(file)))


def server(gpus: int, bandwidth: float = 0.0) -> Machine:
    """Return GPUs of the paper's server, each with a link of its own, as in its file or, if given,
    of another bandwidth, bytes/s."""
    cluster = cluster_of("k20-server.toml")
    (node,) = cluster.classes
    link = replace(cluster.between, bandwidth=bandwidth or cluster.between.bandwidth)
    return Machine((node.device,) * gpus, tuple(range(gpus)), cluster.inside, link)


def servers(count: int) -> Machine:
    """Return the GPUs of some servers, which share one link to the others."""
    return cluster_of("k20-servers.toml").machine(count)


def seconds(gpus: int, way: Way, machine: Machine) -> float:
    """Return how long a step takes."""
    return timeline(programs(gpus, way), machine, FLOAT).seconds


def megabytes(gpus: int, way: Way) -> float:
    """Return the most that one GPU sends in a step, MB."""
    costs = [step_costs(program, FLOAT) for program in programs(gpus, way)]
    sent = sum(np.asarray(cost.work.bytes_sent) for stage in costs for cost in stage)
    return float(np.max(sent) / 1e6)


def hours(step_seconds: float, gpus: int) -> float:
    """Return how long a run of 90 epochs takes, h."""
    return step_seconds * IMAGES * EPOCHS / (BATCH * gpus) / 3600
