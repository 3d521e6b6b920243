"""Check that a plan fits its network."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from mpicnn.division.plan import (
    HOMES,
    INPUT,
    LOSS,
    NORMALISED,
    ORDERS,
    SCHEMES,
    SYNCS,
    Plan,
    Shares,
)
from mpicnn.division.strategy import INPUT_KIND, LOSS_KIND, Row, letters, names, row, rows
from mpicnn.errors import UserError
from mpicnn.text import one_of

if TYPE_CHECKING:
    from mpicnn.layers.base import Layer
    from mpicnn.models import Model


def check_form(model: Model, plan: Plan) -> None:
    """Raise UserError for letters, shares or names that a network does not allow."""
    kinds = {name: layer.kind for name, layer in model.layers} | {LOSS: LOSS_KIND}
    if plan.scheme not in SCHEMES:
        raise UserError(
            f"plan {plan.name}: scheme {plan.scheme!r} is not one of {', '.join(SCHEMES)}"
        )
    if plan.sync not in SYNCS:
        raise UserError(f"plan {plan.name}: sync {plan.sync!r} is not one of {', '.join(SYNCS)}")
    if len(plan.grid) not in (1, 2):
        raise UserError(f"plan {plan.name}: a grid has one or two axes, got {len(plan.grid)}")
    check_shares(f"plan {plan.name}", plan.shares, plan.grid)
    _check_stages(model, plan)
    if plan.scheme != "a" and model.fc_start == len(model.layers):
        raise UserError(
            f"plan {plan.name}: scheme ({plan.scheme}) feeds fully connected layers in rounds, "
            f"and {model.name} has none; use scheme a"
        )
    for name, layer in plan.layers.items():
        where = f"plan {plan.name}: layer {name}"
        if name != INPUT and name not in kinds:
            known = ", ".join(kinds)
            raise UserError(f"{where}: {model.name} has no such layer; it has {known}")
        _check_split(where, layer.split, INPUT_KIND if name == INPUT else kinds[name], plan.grid)
        if layer.home not in HOMES:
            raise UserError(f"{where}: home {layer.home!r} is not one of {', '.join(HOMES)}")
        if layer.shares is not None:
            check_shares(where, layer.shares, plan.grid)
    _check_groups(model, plan)


def _check_split(where: str, split: str, kind: str, grid: Sequence[int]) -> None:
    """Raise UserError unless a split has a letter that the kind of layer allows for each axis."""
    able = letters(kind)
    found = names(split)
    if len(found) != len(grid) or any(name[:1] not in able for name in found):
        raise UserError(
            f"{where}: split {split!r} is not possible; "
            f"expected {len(grid)} letter(s) out of {', '.join(able)}"
        )
    for name, ranks in zip(found, grid, strict=True):
        letter, at, owner = name.partition("@")
        if at and not row(kind, letter).alone:
            raise UserError(f"{where}: split {split!r}: {letter} has no owner; only m@N has one")
        if at and int(owner) >= ranks:
            raise UserError(
                f"{where}: split {split!r}: there is no rank {owner} among {ranks} along that axis"
            )


def groups_of(layer: Layer) -> int:
    """Return into how many groups that do not see each other a contraction's channels fall."""
    return getattr(layer, "groups", 1) if layer.kind == "contraction" else 1


def keeps_groups(layer: Layer, divided: Sequence[Row]) -> bool:
    """Say whether a layer can be divided so, as its groups are: whole, or all on every rank.

    Along two axes groups are divided once, and nothing else of the channels.
    """
    grouped = any(each.grouped for each in divided)
    if groups_of(layer) == 1:
        return not grouped
    once = sum(each.divides_channels for each in divided) <= 1
    return not any(each.divides_inputs for each in divided) and (once or not grouped)


def _check_groups(model: Model, plan: Plan) -> None:
    """Raise UserError where a layer's groups do not allow its letters."""
    for name, layer in model.layers:
        if name not in plan.layers or layer.kind != "contraction":
            continue
        divided = rows(layer.kind, plan.layers[name].split)
        if keeps_groups(layer, divided):
            continue
        able = [row(layer.kind, letter) for letter in letters(layer.kind)]
        kind = "convolution" if layer.convolves else "fully connected layer"
        where = f"plan {plan.name}: layer {name}: a {kind}"
        if groups_of(layer) == 1:
            known = one_of(tuple(each.letter for each in able if not each.grouped))
            raise UserError(f"{where} of one group cannot divide groups; use split {known}")
        if any(each.divides_inputs for each in divided):
            what = "input channels" if layer.convolves else "inputs"
            known = one_of(tuple(each.letter for each in able if not each.divides_inputs))
            raise UserError(f"{where} in groups cannot divide its {what}; use split {known}")
        known = one_of(tuple(each.letter for each in able if not each.divides_channels))
        raise UserError(
            f"{where} that divides its groups along one axis cannot divide channels along the "
            f"other; use {known} there"
        )


def _check_stages(model: Model, plan: Plan) -> None:
    """Raise UserError for stages, micro-batches or rounds that the network cannot run in."""
    if plan.order not in ORDERS:
        raise UserError(f"plan {plan.name}: order {plan.order!r} is not one of {', '.join(ORDERS)}")
    if plan.batch_norm not in NORMALISED:
        known = ", ".join(NORMALISED)
        raise UserError(f"plan {plan.name}: batch_norm {plan.batch_norm!r} is not one of {known}")
    if plan.micro_batches < 1:
        raise UserError(
            f"plan {plan.name}: micro-batches must be at least 1, got {plan.micro_batches}"
        )
    names = [name for name, _ in model.layers]
    unknown = [name for name in plan.stages if name not in names[1:]]
    if unknown:
        raise UserError(
            f"plan {plan.name}: stages: no stage can begin at {unknown[0]!r}; expected "
            f"layers of {model.name} after the first, out of {', '.join(names[1:])}"
        )
    starts = [names.index(name) for name in plan.stages]
    if starts != sorted(set(starts)):
        raise UserError(
            f"plan {plan.name}: stages {', '.join(plan.stages)} are not in the network's order"
        )
    parted = {}
    if plan.micro_batches > 1 and plan.batch_norm == "batch":
        parted["micro-batches above 1"] = 0, "micro-batches 1, or batch-norm micro for theirs"
    if plan.scheme != "a":
        parted[f"scheme ({plan.scheme})"] = model.fc_start, "scheme a"
    for what, (start, remedy) in parted.items():
        for (name, layer), shape in list(zip(model.layers, model.fed, strict=True))[start:]:
            if name not in model.frozen and any(layer.batch_sums(shape)):
                raise UserError(
                    f"plan {plan.name}: layer {name} normalises over the whole batch, which "
                    f"{what} would cut up; use {remedy}"
                )


def check_shares(where: str, shares: Sequence[Shares], grid: Sequence[int]) -> None:
    """Raise UserError unless there is one usable weight for every rank of every axis."""
    if tuple(len(s) for s in shares) != tuple(grid):
        lengths = " and ".join(str(n) for n in grid)
        given = " and ".join(str(len(s)) for s in shares)
        raise UserError(f"{where}: {given} shares given, expected one for each of {lengths} ranks")
    for weights in shares:
        usable = all(isfinite(w) and w >= 0 for w in weights) and sum(weights) > 0
        if not usable:
            listed = ",".join(f"{w:g}" for w in weights)
            raise UserError(f"{where}: shares {listed} must be finite, not negative and not all 0")
