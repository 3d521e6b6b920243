"""Stochastic gradient descent: the update, the schedules of its rate, scaling with the batch.

Everything is pure but `update`, which changes the arrays it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import cos, exp, expm1, inf, isfinite, log, log1p, pi, sqrt
from typing import get_args

from mpicnn.errors import UserError
from mpicnn.layers.base import Array, Param
from mpicnn.ops.interface import Backend
from mpicnn.settings.choices import RateScheduleName, Scaling
from mpicnn.step.state import Arrays, State

RATE_SCHEDULES = get_args(RateScheduleName)
SCALINGS = get_args(Scaling)

DEXP_LEVELS = 4
DEXP_FALL = 250.0


@dataclass(frozen=True)
class RateSchedule:
    """Say how the learning rate changes over a run, as a factor between 0 and 1.

    - "constant": 1 throughout.
    - "steps": times `drop_factor` at each of `drops`, fractions of the run.
    - "dexp": 4 levels of equal length and ratio, from 1 to 1/250, so divided by 250^(1/3) at 25,
      50 and 75 % of the run (cuda-convnet2's schedule of that name, with OWT's figures).
    - "cosine": (1 + cos(pi t)) / 2, t running from 0 to 1 after the warm-up (Loshchilov and Hutter
      2017, arXiv 1608.03983).

    Over the first `warmup` steps every kind is multiplied by a factor that rises linearly and
    reaches 1 in the last of them (Goyal et al. 2017, arXiv 1706.02677; they start at the rate of
    the reference batch, this near 0). Raises UserError for values that make no schedule.
    """

    kind: str = "constant"
    drops: tuple[float, ...] = ()
    drop_factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in RATE_SCHEDULES:
            raise UserError(f"schedule {self.kind!r}, expected one of {', '.join(RATE_SCHEDULES)}")
        bounds = (0.0, *self.drops, 1.0)
        if not all(a < b for a, b in zip(bounds, bounds[1:], strict=False)):
            raise UserError(
                f"schedule drops at {self.drops}, expected rising fractions of the run between 0 "
                "and 1, such as 0.5,0.75"
            )
        _check("drop factor of the schedule", self.drop_factor, above=0.0)
        _check("warm-up steps", self.warmup, least=0.0)

    def factor_at(self, step: int, total_steps: int) -> float:
        """Return the factor for `step`, counted from 0, of `total_steps`."""
        if not 0 <= step < total_steps:
            raise ValueError(f"step {step} of {total_steps}")
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        match self.kind:
            case "steps":
                return warm * self.drop_factor ** sum(step / total_steps >= d for d in self.drops)
            case "dexp":
                level = step * DEXP_LEVELS // total_steps
                return warm * exp(-log(DEXP_FALL) * level / (DEXP_LEVELS - 1))
            case "cosine" if step >= self.warmup:
                t = (step - self.warmup) / (total_steps - self.warmup)
                return (1.0 + cos(pi * t)) / 2.0
        return warm


@dataclass(frozen=True)
class Hyper:
    """Say how a group of parameters is updated: OWT's epsilon, mu and omega, and the schedule.

    `bias_rate` multiplies the rate of biases (2 in cuda-convnet2). Raises UserError for values
    under which no run makes sense.
    """

    rate: float
    momentum: float = 0.9
    decay: float = 0.0
    bias_rate: float = 1.0
    schedule: RateSchedule = field(default_factory=RateSchedule)

    def __post_init__(self) -> None:
        _check("learning rate", self.rate, least=0.0)
        _check("momentum", self.momentum, least=0.0, below=1.0)
        _check("weight decay", self.decay, least=0.0)
        _check("bias rate", self.bias_rate, least=0.0)

    def rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of `step`, counted from 0, of `total_steps`."""
        return self.rate * self.schedule.factor_at(step, total_steps)


def scale(
    rate: float, decay: float, batch: int, reference_batch: int, rule: str
) -> tuple[float, float]:
    """Return rate and decay for `batch`, given those that suit `reference_batch`.

    With k = batch / reference_batch (not necessarily whole):

    - "none": as they are.
    - "linear": k rate, decay as it is (OWT's practice; Goyal et al. 2017, arXiv 1706.02677).
    - "sqrt": sqrt(k) rate, decay as it is. Keeps the variance of the update (OWT's theory).
    - "owt": sqrt(k) rate, and the decay w' under which one step shrinks a weight exactly as k
      steps did: w' = (1 - (1 - rate w)^k) / (sqrt(k) rate), about sqrt(k) w (OWT's theory).

    Raises UserError for an unknown rule, batches below 1, or values out of range.
    """
    _check("learning rate", rate, least=0.0)
    _check("weight decay", decay, least=0.0)
    _check("batch", batch, least=1)
    _check("reference batch", reference_batch, least=1)
    k = batch / reference_batch
    match rule:
        case "none":
            return rate, decay
        case "linear":
            return k * rate, decay
        case "sqrt":
            return sqrt(k) * rate, decay
        case "owt":
            shrink = rate * decay
            _check("learning rate x weight decay", shrink, least=0.0, below=1.0)
            if shrink == 0.0:
                return sqrt(k) * rate, sqrt(k) * decay
            return sqrt(k) * rate, -expm1(k * log1p(-shrink)) / (sqrt(k) * rate)
    raise UserError(f"scaling rule {rule!r}, expected one of {', '.join(SCALINGS)}")


def update(
    ops: Backend,
    state: State,
    grads: Mapping[str, Array],
    specs: Mapping[str, Param],
    hyper: Hyper,
    rate: float,
) -> None:
    """Change, in place, every parameter that has a gradient, and its velocity.

    v <- momentum v - rate (g + decay w), then w <- w + v (OWT; cuda-convnet2). Biases, by
    their `specs`, have the rate rate * bias_rate and no decay. Arrays may be any shares of the
    parameters, alike in `state` and `grads`.
    """
    for name, g in grads.items():
        bias = specs[name].bias
        ops.sgd(
            state.params[name],
            state.velocity[name],
            g,
            rate * hyper.bias_rate if bias else rate,
            hyper.momentum,
            0.0 if bias else hyper.decay,
        )


@dataclass(frozen=True)
class Optimiser:
    """Update the parameters of `state` by stochastic gradient descent, over a run of `steps` steps.

    Parameters named in `head` have `head_rate` times the rate. With `by_round` they change after
    every round of the head (OWT's variable batch size), else with all others once per step.
    """

    ops: Backend
    state: State
    specs: Mapping[str, Param]
    hyper: Hyper
    steps: int
    head: frozenset[str] = frozenset()
    head_rate: float = 1.0
    by_round: bool = False

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.hyper.rate_at(step, self.steps)

    def apply(self, grads: Arrays, step: int) -> None:
        """Change the parameters that have gradients, in place."""
        head = {name: g for name, g in grads.items() if name in self.head}
        body = {name: g for name, g in grads.items() if name not in self.head}
        for part, factor in ((body, 1.0), (head, self.head_rate)):
            rate = self.rate_at(step) * factor
            update(self.ops, self.state, part, self.specs, self.hyper, rate)


def _check(
    what: str, value: float, least: float = -inf, above: float = -inf, below: float = inf
) -> None:
    """Raise UserError unless `value` is finite, >= least, > above and < below."""
    if not (isfinite(value) and value >= least and value > above and value < below):
        low = f"above {above:g}" if above > -inf else f"at least {least:g}"
        high = f" and below {below:g}" if below < inf else ""
        raise UserError(f"{what} {value!r}, expected a number {low}{high}")
