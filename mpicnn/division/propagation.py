"""How every layer of a network is divided by a plan that names some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mpicnn.division.checks import check_form, groups_of
from mpicnn.division.plan import INPUT, LOSS, Plan, Shares
from mpicnn.division.strategy import DEFAULT, INPUT_KIND, LOSS_KIND, Row, letters, rows
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model


class LayerDivision(NamedTuple):
    """Say how a layer is divided: a row and shares for each mesh axis, and its weights' home.

    `follows` marks a layer that takes its input as it lies, `frozen` one that does not learn.
    `groups` are those of its channels that do not see each other.
    """

    rows: tuple[Row, ...]
    shares: tuple[Shares, ...]
    home: str = "use"
    follows: bool = False
    frozen: bool = False
    groups: int = 1

    @property
    def split(self) -> str:
        """Return the names, one per axis."""
        return "".join(row.name for row in self.rows)


def propagate(model: Model, plan: Plan) -> dict[str, LayerDivision]:
    """Return how "input", every layer of `model` and "loss" are divided, in this order.

    A layer that the plan does not name keeps the layout of what it reads (first) where its kind
    can, else it divides the batch.
    Raises UserError where the plan does not fit the network.
    """
    check_form(model, plan)
    values = [_input(model, plan)]
    for (name, layer), sources in zip(model.layers, model.sources, strict=True):
        found = divide(name, layer.kind, plan, values[sources[0]])
        groups = groups_of(layer)
        values.append(found._replace(frozen=name in model.frozen, groups=groups))
    loss = divide(LOSS, LOSS_KIND, plan, values[-1])
    names = (INPUT, *(name for name, _ in model.layers), LOSS)
    return dict(zip(names, (*values, loss), strict=True))


def _input(model: Model, plan: Plan) -> LayerDivision:
    """Return how the batch is read: as the plan says, or as the first named layer wants it."""
    split, shares = DEFAULT * len(plan.grid), None
    named = ((layer.kind, plan.layers[n]) for n, layer in model.layers if n in plan.layers)
    for kind, first in named:
        split = "".join(row.reads for row in rows(kind, first.split))
        shares = first.shares
        break
    if asked := plan.layers.get(INPUT):
        split, shares = asked.split, asked.shares
    return LayerDivision(rows(INPUT_KIND, split), shares or plan.shares)


def divide(name: str, kind: str, plan: Plan, before: LayerDivision) -> LayerDivision:
    """Return how a layer, or the loss, is divided, given the division of what it reads (first)."""
    if asked := plan.layers.get(name):
        return LayerDivision(rows(kind, asked.split), asked.shares or plan.shares, asked.home)
    able = () if kind == "contraction" else letters(kind)
    kept = [row.follow if row.follow and row.follow[0] in able else None for row in before.rows]
    shares = (
        old if letter else new
        for letter, old, new in zip(kept, before.shares, plan.shares, strict=True)
    )
    split = "".join(letter or DEFAULT for letter in kept)
    return LayerDivision(rows(kind, split), tuple(shares), follows=all(kept))


def check_batch(model: Model, plan: Plan, batch: int) -> None:
    """Raise UserError unless a full batch has an example for every rank that is to share it,
    and for every micro-batch."""
    if batch < plan.micro_batches:
        raise UserError(
            f"micro-batches {plan.micro_batches}: more than the {batch} examples of a batch; "
            "use fewer, or a larger batch"
        )
    for name, division in propagate(model, plan).items():
        sharing = 1
        for row, shares in zip(division.rows, division.shares, strict=True):
            sharing *= sum(weight > 0 for weight in shares) if row.shares_batch else 1
        if batch < sharing:
            raise UserError(
                f"batch {batch}: fewer examples than the {sharing} ranks that share them "
                f"in layer {name}; use a larger batch, fewer ranks or shares of 0"
            )
