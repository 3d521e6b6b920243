"""Give the branches of a network to different ranks (Ben-Nun and Hoefler's model parallelism)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from mpicnn.division.work import whole_layer_work
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model


def branches(model: Model) -> list[list[list[int]]]:
    """Return the branches at each place where a network branches, as indices of their layers.

    Between two neighbouring places where the network is one value wide, layers hang together that
    feed one another without the last one, which joins them. Several such groups are branches.
    """
    narrow = [at for at, alone in enumerate(model.narrow) if alone]
    found = []
    for start, stop in pairwise([*narrow, len(model.layers)]):
        groups: list[set[int]] = []
        for index in range(start, stop - 1):
            fed = {value - 1 for value in model.sources[index]}
            near = [group for group in groups if group & fed]
            groups = [group for group in groups if not group & fed]
            groups.append({index}.union(*near))
        if len(groups) > 1:
            found.append(sorted(sorted(group) for group in groups))
    return found


def owners(model: Model, ranks: int) -> dict[str, int]:
    """Return the rank that has each layer of a branch, by the layer's name.

    The branches of a place go to the ranks, the largest first, each to the rank that has least so
    far there, by the FLOP of their contractions. Raises UserError for a network without branches.
    """
    places = branches(model)
    if not places:
        raise UserError(
            f"plan branches: {model.name} has none: everywhere one layer alone feeds the next; "
            "use another preset"
        )
    flops = [
        whole_layer_work(layer, shape).flops()
        for (_, layer), shape in zip(model.layers, model.fed, strict=True)
    ]
    found: dict[str, int] = {}
    for place in places:
        loads = [0.0] * ranks
        for branch in sorted(place, key=lambda b: -sum(flops[i] for i in b)):
            rank = loads.index(min(loads))
            loads[rank] += sum(flops[i] for i in branch)
            found |= {model.layers[i][0]: rank for i in branch}
    return found
