"""How the learning rate changes over a run, and with the batch."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, exp, expm1, inf, isfinite, log, log1p, pi, sqrt
from typing import get_args

from mpicnn.errors import UserError
from mpicnn.settings.choices import RateScheduleName, Scaling

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
    - "polynomial": (1 - t)^power, t as for the cosine (power 2: You et al. 2017, arXiv 1708.03888).

    Over the first `warmup` steps every kind is multiplied by a factor that rises linearly and
    reaches 1 in the last of them (Goyal et al. 2017, arXiv 1706.02677; they start at the rate of
    the reference batch, this near 0). Raises UserError for values that make no schedule.
    """

    kind: str = "constant"
    drops: tuple[float, ...] = ()
    drop_factor: float = 0.1
    warmup: float = 0.0
    power: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in RATE_SCHEDULES:
            raise UserError(f"schedule {self.kind!r}, expected one of {', '.join(RATE_SCHEDULES)}")
        bounds = (0.0, *self.drops, 1.0)
        if not all(a < b for a, b in zip(bounds, bounds[1:], strict=False)):
            raise UserError(
                f"schedule drops at {self.drops}, expected rising fractions of the run between 0 "
                "and 1, such as 0.5,0.75"
            )
        check_number("drop factor of the schedule", self.drop_factor, above=0.0)
        check_number("warm-up steps", self.warmup, least=0.0)
        check_number("power of the schedule", self.power, above=0.0)

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
            case "cosine" | "polynomial" if step >= self.warmup:
                t = (step - self.warmup) / (total_steps - self.warmup)
                cosine = self.kind == "cosine"
                return (1.0 + cos(pi * t)) / 2.0 if cosine else (1.0 - t) ** self.power
        return warm


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
    check_number("learning rate", rate, least=0.0)
    check_number("weight decay", decay, least=0.0)
    check_number("batch", batch, least=1)
    check_number("reference batch", reference_batch, least=1)
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
            check_number("learning rate x weight decay", shrink, least=0.0, below=1.0)
            if shrink == 0.0:
                return sqrt(k) * rate, sqrt(k) * decay
            return sqrt(k) * rate, -expm1(k * log1p(-shrink)) / (sqrt(k) * rate)
    raise UserError(f"scaling rule {rule!r}, expected one of {', '.join(SCALINGS)}")


def check_number(
    what: str, value: float, least: float = -inf, above: float = -inf, below: float = inf
) -> None:
    """Raise UserError unless `value` is finite, >= least, > above and < below."""
    if not (isfinite(value) and value >= least and value > above and value < below):
        low = f"above {above:g}" if above > -inf else f"at least {least:g}"
        high = f" and below {below:g}" if below < inf else ""
        raise UserError(f"{what} {value!r}, expected a number {low}{high}")
