"""Where a network is cut into pipeline stages that take about as long as each other."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from mpicnn.division.work import whole_layer_work
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model

FLOP_PER_ITEM = 10.0
"""FLOP that take about as long as a pass over one item in memory: what other layers cost."""


def cut(model: Model, depth: int) -> tuple[str, ...]:
    """Return the first layer of every stage after the first, for `depth` stages.

    A stage begins at a layer with weights, so that what is handed on is as small as pooling has
    made it. Of all such cuts it is the one whose slowest stage has the least work, by the FLOP of
    one example forward and backward.
    Raises UserError where there are more stages than such layers.
    """
    work = [0.0]
    starts = []
    for at, ((name, layer), shape) in enumerate(zip(model.layers, model.fed, strict=True)):
        if layer.kind == "contraction":
            starts.append(at)
        once = whole_layer_work(layer, shape)
        items = once.activations + once.weights
        products = 3 - (name in model.frozen) if model.learns[at + 1] else 1
        work.append(once.flops(products) + FLOP_PER_ITEM * items)
    before = list(accumulate(work))
    if depth > max(1, len(starts)):
        raise UserError(
            f"stages {depth}: {model.name} has {len(starts)} layers with weights to divide; "
            "use fewer stages, and more ranks to each"
        )

    @cache
    def best(stages: int, stop: int) -> tuple[float, tuple[int, ...]]:
        """Return the slowest stage's work and the cuts of the layers before `stop`."""
        if stages == 1:
            return before[stop], ()
        found = [
            (max(slowest, before[stop] - before[start]), (*cuts, start))
            for start in starts[1:]
            if start < stop
            for slowest, cuts in [best(stages - 1, start)]
        ]
        return min(found, default=(float("inf"), ()))

    return tuple(model.layers[start][0] for start in best(depth, len(model.layers))[1])
