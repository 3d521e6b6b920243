"""What a plan comes out as, layer by layer, for one network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpicnn.division.checks import check_form
from mpicnn.division.plan import INPUT, LOSS, LayerPlan, Plan, Shares
from mpicnn.division.strategy import letters, row
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.models import Model


@dataclass(frozen=True)
class Choice:
    """Say what a layer's division came out as; `follows` where it takes the layout it finds."""

    split: str
    shares: tuple[Shares, ...]
    home: str
    follows: bool


def resolve(model: Model, plan: Plan) -> dict[str, Choice]:
    """Return what "input", every layer of `model` and "loss" come out as, in this order.

    Raises UserError where the plan does not fit the network.
    """
    check_form(model, plan)
    first = next((plan.layers[n] for n, _ in model.layers if n in plan.layers), None)
    asked = plan.layers.get(INPUT) or LayerPlan(
        _input_letters(model, plan), first.shares if first else None
    )
    choices = {INPUT: Choice(asked.split, asked.shares or plan.shares, "use", False)}
    carry, shares = asked.split, choices[INPUT].shares
    for name, layer in model.layers:
        choice = _choose(name, layer.kind, plan, carry, shares)
        choices[name] = choice
        carry = "".join(_after(layer.kind, letter) for letter in choice.split)
        shares = choice.shares
    choices[LOSS] = _choose(LOSS, "examplewise", plan, carry, shares)
    return choices


def _choose(name: str, kind: str, plan: Plan, carry: str, shares: tuple[Shares, ...]) -> Choice:
    asked = plan.layers.get(name)
    if asked is not None:
        return Choice(asked.split, asked.shares or plan.shares, asked.home, False)
    able = letters(kind)
    stays = [letter in able and kind != "contraction" for letter in carry]
    split = "".join(letter if stay else "n" for letter, stay in zip(carry, stays, strict=True))
    weights = tuple(s if stay else p for s, p, stay in zip(shares, plan.shares, stays, strict=True))
    return Choice(split, weights, "use", all(stays))


def _after(kind: str, letter: str) -> str:
    """Return the letter that a layer's output leaves for the layers behind it to follow."""
    strategy = row(kind, letter)
    if strategy.alone:
        return "m"
    return {None: "p", 0: "n", 1: "c"}[strategy.y]


def _input_letters(model: Model, plan: Plan) -> str:
    """Return how the input is read where the plan does not say: as the first layer wants it."""
    for name, layer in model.layers:
        if name in plan.layers:
            rows = [row(layer.kind, letter) for letter in plan.layers[name].split]
            return "".join("m" if r.alone else "n" if r.x == 0 else "r" for r in rows)
    return "n" * len(plan.grid)


def check_batch(model: Model, plan: Plan, batch: int) -> None:
    """Raise UserError unless a full batch has an example for every rank that is to share it,
    and for every micro-batch."""
    if batch < plan.micro_batches:
        raise UserError(
            f"micro-batches {plan.micro_batches}: more than the {batch} examples of a batch; "
            "use fewer, or a larger batch"
        )
    for name, choice in resolve(model, plan).items():
        sharing = 1
        for letter, shares in zip(choice.split, choice.shares, strict=True):
            sharing *= sum(weight > 0 for weight in shares) if letter == "n" else 1
        if batch < sharing:
            raise UserError(
                f"batch {batch}: fewer examples than the {sharing} ranks that share them "
                f"in layer {name}; use a larger batch, fewer ranks or shares of 0"
            )
