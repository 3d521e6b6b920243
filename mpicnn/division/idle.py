"""Ranks for which a layer has nothing: more ranks than examples or channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mpicnn.division.checks import groups_of
from mpicnn.division.plan import INPUT, LOSS, Plan, Shares
from mpicnn.division.strategy import INPUT_KIND, LOSS_KIND, Row, rows

if TYPE_CHECKING:
    from mpicnn.models import Model

BATCH = "the batch"
"""What stands for a layer's name where it is examples that are too few."""


def leave_idle(model: Model, plan: Plan, batch: int) -> tuple[Plan, dict[str, int]]:
    """Return a plan that gives a share of 0 to the ranks for which there is no item.

    Where there are fewer examples, or a layer has fewer channels, than an axis has ranks with a
    share, the largest shares are kept, of equal ones the first. Also returned is how many ranks of
    an axis have so nothing to do, by layer, or under `BATCH`. Raises KeyError for letters that a
    layer does not have, which `checks.check_form` refuses.
    """
    kinds = {name: layer.kind for name, layer in model.layers}
    kinds |= {INPUT: INPUT_KIND, LOSS: LOSS_KIND}
    channels = _channels(model)
    idle: dict[str, int] = {}
    layers = {}
    for name, layer in plan.layers.items():
        asked, divided = layer.shares or plan.shares, rows(kinds[name], layer.split)
        shares = _limited(divided, asked, batch, channels[name])
        where = BATCH if any(row.shares_batch for row in divided) else name
        _note(idle, where, asked, shares)
        layers[name] = layer if shares == asked else replace(layer, shares=shares)
    # what no letter is given for follows, or divides the batch
    by_batch = rows(INPUT_KIND, "n" * len(plan.grid))
    examples = _limited(by_batch, plan.shares, batch, (0, 0, 1))
    return replace(plan, layers=layers, shares=examples), idle


def _channels(model: Model) -> dict[str, tuple[int, int, int]]:
    """Return the numbers of every layer's input and output channels, and of its groups."""
    images, classes = model.input_shape[0], model.classes
    found = {INPUT: (images, images, 1), LOSS: (classes, classes, 1)}
    for (name, layer), fed, shape in zip(model.layers, model.fed, model.shapes[1:], strict=True):
        first = fed[0] if isinstance(fed[0], tuple) else fed
        found[name] = first[0], shape[0], groups_of(layer)
    return found


def _limited(
    divided: Sequence[Row], asked: Sequence[Shares], batch: int, channels: tuple[int, int, int]
) -> tuple[Shares, ...]:
    """Return the shares of each axis, no more of them above 0 than there are items."""
    found: list[Shares] = []
    outer = {True: 1, False: 1}  # into how many parts earlier axes cut examples, and channels
    for row, shares in zip(divided, asked, strict=True):
        if row.divides:
            items = row.length(batch, *channels) // outer[row.shares_batch]
            shares = _largest(shares, max(1, items))
            outer[row.shares_batch] *= sum(weight > 0 for weight in shares)
        found.append(shares)
    return tuple(found)


def _largest(shares: Shares, most: int) -> Shares:
    """Return shares of which the `most` largest are kept, and the others 0."""
    if sum(weight > 0 for weight in shares) <= most:
        return shares
    kept = set(sorted(range(len(shares)), key=lambda at: -shares[at])[:most])
    return tuple(weight if at in kept else 0.0 for at, weight in enumerate(shares))


def _note(idle: dict[str, int], name: str, asked: Sequence[Shares], left: Sequence[Shares]) -> None:
    """Note how many ranks have lost their share."""
    for before, after in zip(asked, left, strict=True):
        lost = sum(a > 0 for a in before) - sum(a > 0 for a in after)
        if lost:
            idle[name] = max(lost, idle.get(name, 0))
