"""Which strategy and shares every layer has: plain data, savable, printable, comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, prod
from typing import TYPE_CHECKING

from mpicnn.errors import UserError
from mpicnn.strategy import letters

if TYPE_CHECKING:
    from mpicnn.models import Model

Weights = tuple[float, ...]

PRESETS = ("data", "owt", "filter", "master-worker", "fc-output", "fc-input")
SCHEMES = ("a", "b", "c")
SYNCS = ("allreduce", "sharded")
HOMES = ("use", "first")
ORDERS = ("1f1b", "gpipe")
INPUT, LOSS = "input", "loss"
INPUT_LETTERS = ("n", "m", "r")


@dataclass(frozen=True)
class LayerPlan:
    """Say how one layer is divided.

    `split` has one letter per mesh axis (`mpicnn.strategy`); `shares` one tuple of weights per
    axis, or None for the plan's own; `home` where its parameters live between steps: "use", as
    they are computed with, or "first", on the first rank, from where they travel every step
    (Marques, algorithm 1).
    """

    split: str
    shares: tuple[Weights, ...] | None = None
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
    or "gpipe" (`mpicnn.schedule`).
    """

    grid: tuple[int, ...]
    shares: tuple[Weights, ...]
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    scheme: str = "a"
    sync: str = "allreduce"
    name: str = "data"
    stages: tuple[str, ...] = ()
    micro_batches: int = 1
    order: str = "1f1b"

    @property
    def depth(self) -> int:
        """Return the number of pipeline stages."""
        return 1 + len(self.stages)

    @property
    def ranks(self) -> int:
        """Return the number of ranks that the plan divides the work over."""
        return self.depth * prod(self.grid)


def equal_shares(grid: Sequence[int]) -> tuple[Weights, ...]:
    """Return the same weight for every rank of every axis."""
    return tuple((1.0,) * n for n in grid)


def preset(
    name: str,
    model: Model,
    grid: Sequence[int],
    shares: tuple[Weights, ...] | None = None,
    scheme: str = "a",
    sync: str = "allreduce",
) -> Plan:
    """Return a plan of a known kind for `model` on `grid`.

    data           every layer divides the batch (survey)
    owt            convolutions divide the batch, FC layers their outputs, fed by `scheme` (OWT)
    fc-output      the same with scheme (a) in the survey's terms
    fc-input       convolutions divide the batch, FC layers their inputs (survey)
    filter         convolutions divide their kernels, all else the batch (Marques, extended)
    master-worker  convolutions divide their kernels, the first rank does and holds all else
                   (Marques, algorithms 1 and 2)

    With two axes the first always divides the batch and the preset rules the second.
    Raises UserError for an unknown name, and for fc-output with another scheme than (a).
    """
    conv, fc, rest, home = {
        "data": ("n", "n", "", "use"),
        "owt": ("n", "o", "", "use"),
        "fc-output": ("n", "o", "", "use"),
        "fc-input": ("n", "c", "", "use"),
        "filter": ("o", "n", "n", "use"),
        "master-worker": ("o", "m", "m", "first"),
    }.get(name) or _unknown_preset(name)
    outer = "n" * (len(grid) - 1)
    layers: dict[str, LayerPlan] = {}
    if rest:
        layers[INPUT] = LayerPlan(outer + ("m" if rest == "m" else "r"))
        layers[LOSS] = LayerPlan(outer + rest)
    for layer_name, layer in model.layers:
        if layer.kind == "contraction":
            is_conv = len(model.shape_before(layer_name)) == 3
            layers[layer_name] = LayerPlan(
                outer + (conv if is_conv else fc), home=home if is_conv else "use"
            )
        elif rest == "m" or (rest and layer.kind == "examplewise"):
            layers[layer_name] = LayerPlan(outer + rest)
    if name == "fc-output" and scheme != "a":
        raise UserError(f"plan fc-output takes the batch at once; use owt for scheme {scheme}")
    return Plan(tuple(grid), shares or equal_shares(grid), layers, scheme, sync, name)


def _unknown_preset(name: str) -> tuple[str, str, str, str]:
    raise UserError(
        f"plan: there is no preset {name!r}; expected one of {', '.join(PRESETS)} or a FILE.toml"
    )


def check_form(model: Model, plan: Plan) -> None:
    """Raise UserError for letters, shares or names that cannot be meant."""
    kinds = {name: layer.kind for name, layer in model.layers} | {LOSS: "examplewise"}
    if plan.scheme not in SCHEMES:
        raise UserError(f"plan: scheme {plan.scheme!r} is not one of {', '.join(SCHEMES)}")
    if plan.sync not in SYNCS:
        raise UserError(f"plan: sync {plan.sync!r} is not one of {', '.join(SYNCS)}")
    if len(plan.grid) not in (1, 2):
        raise UserError(f"plan: a grid has one or two axes, got {len(plan.grid)}")
    check_shares("plan", plan.shares, plan.grid)
    _check_stages(model, plan)
    if plan.scheme != "a" and model.fc_start == len(model.layers):
        raise UserError(
            f"plan: scheme ({plan.scheme}) feeds fully connected layers in rounds, "
            f"and {model.name} has none; use scheme a"
        )
    for name, layer in plan.layers.items():
        where = f"plan: layer {name}"
        if name != INPUT and name not in kinds:
            known = ", ".join(kinds)
            raise UserError(f"{where}: {model.name} has no such layer; it has {known}")
        able = INPUT_LETTERS if name == INPUT else letters(kinds[name])
        if len(layer.split) != len(plan.grid) or any(a not in able for a in layer.split):
            raise UserError(
                f"{where}: split {layer.split!r} is not possible; "
                f"expected {len(plan.grid)} letter(s) out of {', '.join(able)}"
            )
        if layer.home not in HOMES:
            raise UserError(f"{where}: home {layer.home!r} is not one of {', '.join(HOMES)}")
        if layer.shares is not None:
            check_shares(where, layer.shares, plan.grid)


def _check_stages(model: Model, plan: Plan) -> None:
    """Raise UserError for stages, micro-batches or rounds that the network cannot run in."""
    if plan.order not in ORDERS:
        raise UserError(f"plan: order {plan.order!r} is not one of {', '.join(ORDERS)}")
    if plan.micro_batches < 1:
        raise UserError(f"plan: micro-batches must be at least 1, got {plan.micro_batches}")
    names = [name for name, _ in model.layers]
    unknown = [name for name in plan.stages if name not in names[1:]]
    if unknown:
        raise UserError(
            f"plan: stages: no stage can begin at {unknown[0]!r}; expected layers of {model.name} "
            f"after the first, out of {', '.join(names[1:])}"
        )
    starts = [names.index(name) for name in plan.stages]
    if starts != sorted(set(starts)):
        raise UserError(f"plan: stages {', '.join(plan.stages)} are not in the network's order")
    parted = {"micro-batches above 1": 0} if plan.micro_batches > 1 else {}
    if plan.scheme != "a":
        parted[f"scheme ({plan.scheme})"] = model.fc_start
    for what, start in parted.items():
        for (name, layer), shape in list(zip(model.layers, model.shapes(), strict=False))[start:]:
            if any(layer.batch_sums(shape)):
                raise UserError(
                    f"plan: layer {name} normalises over the whole batch, which {what} would cut "
                    "up; use micro-batches 1 and scheme a"
                )


def check_shares(where: str, shares: Sequence[Weights], grid: Sequence[int]) -> None:
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


if __name__ == "__main__":
    from mpicnn.commands import start

    start("plan")
