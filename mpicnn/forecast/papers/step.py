"""A training step on a machine, for a plan that is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpicnn.division.compile import Options, compile_all
from mpicnn.division.plan import Plan
from mpicnn.forecast.machine import Machine
from mpicnn.forecast.timeline import Timeline, timeline

if TYPE_CHECKING:
    from mpicnn.models import Model

BUCKET = 1 << 20
"""The numbers that travel together in one message of gradients, as in training by default."""


def step(
    model: Model, plan: Plan, machine: Machine, batch: int, itemsize: int = 4,
    by_round: bool = False,
) -> Timeline:  # fmt: skip
    """Return when the ranks of a machine do what in a step of `batch` examples.

    `itemsize` are the bytes of a number; `by_round` updates fully connected weights after every
    round (OWT's variable batch). Raises UserError where the plan does not fit.
    """
    programs = compile_all(model, plan, batch, Options(BUCKET, by_round=by_round))
    return timeline(programs, machine, itemsize)
