"""How parameters change by their gradients: the rules, and what they have in common.

Everything changes the arrays that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from mpicnn.errors import UserError
from mpicnn.layers.base import Array, Param
from mpicnn.ops.interface import Backend
from mpicnn.settings.choices import OptimiserName
from mpicnn.step.norms import Norms, Total
from mpicnn.step.rates import RateSchedule, check_number
from mpicnn.step.state import Arrays, State

OPTIMISERS = get_args(OptimiserName)

CLIP_EPS = 1e-6
"""What PyTorch's `clip_grad_norm_` adds to the norm that it divides by."""


@dataclass(frozen=True)
class Hyper:
    """Say how parameters are updated: OWT's epsilon, mu and omega, the schedule, and the rule.

    `bias_rate` multiplies the rate of biases (2 in cuda-convnet2). `nesterov` belongs to "sgd",
    `trust` to "lars", `beta1`, `beta2` and `eps` to "adamw" and "lamb". `clip` is the largest norm
    of all gradients together, `ema` the decay of the running mean of the weights; 0: none.
    Raises UserError for values under which no run makes sense.
    """

    rate: float
    momentum: float = 0.9
    decay: float = 0.0
    bias_rate: float = 1.0
    schedule: RateSchedule = field(default_factory=RateSchedule)
    optimiser: OptimiserName = "sgd"
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    trust: float = 0.001
    clip: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.optimiser not in OPTIMISERS:
            raise UserError(
                f"optimiser {self.optimiser!r}, expected one of {', '.join(OPTIMISERS)}"
            )
        check_number("learning rate", self.rate, least=0.0)
        check_number("momentum", self.momentum, least=0.0, below=1.0)
        check_number("weight decay", self.decay, least=0.0)
        check_number("bias rate", self.bias_rate, least=0.0)
        check_number("beta1", self.beta1, least=0.0, below=1.0)
        check_number("beta2", self.beta2, least=0.0, below=1.0)
        check_number("eps", self.eps, above=0.0)
        check_number("trust coefficient", self.trust, above=0.0)
        check_number("clip", self.clip, least=0.0)
        check_number("ema", self.ema, least=0.0, below=1.0)

    def rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of `step`, counted from 0, of `total_steps`."""
        return self.rate * self.schedule.factor_at(step, total_steps)


def update(
    ops: Backend,
    state: State,
    grads: Mapping[str, Array],
    specs: Mapping[str, Param],
    hyper: Hyper,
    rate: float,
) -> None:
    """Change, in place, every parameter that has a gradient, and its velocity: "sgd".

    v <- momentum v - rate (g + decay w), then w <- w + v (OWT; cuda-convnet2), or with Nesterov's
    momentum. Biases, by their `specs`, have the rate rate * bias_rate and no decay. Arrays may be
    any shares of the parameters, alike in `state` and `grads`.
    """
    rule = ops.nesterov if hyper.nesterov else ops.sgd
    for name, g in grads.items():
        bias = specs[name].bias
        rule(
            state.params[name],
            state.velocity[name],
            g,
            rate * hyper.bias_rate if bias else rate,
            hyper.momentum,
            0.0 if bias else hyper.decay,
        )


@dataclass(frozen=True)
class Optimiser:
    """Update the parameters of `state` over a run of `steps` steps, as `hyper` says.

    Parameters named in `head` have `head_rate` times the rate. With `by_round` they change after
    every round of the head (OWT's variable batch size; "sgd" without clipping alone), else with all
    others once per step. `norms` says which parts count where norms are needed: for "lars", "lamb"
    and clipping.
    """

    ops: Backend
    state: State
    specs: Mapping[str, Param]
    hyper: Hyper
    steps: int
    head: frozenset[str] = frozenset()
    head_rate: float = 1.0
    by_round: bool = False
    norms: Norms | None = None

    def __post_init__(self) -> None:
        needed = self.hyper.clip or self.hyper.optimiser in ("lars", "lamb")
        if needed and (self.norms is None or self.by_round):
            raise ValueError("norms are those of whole tensors, and of a whole step")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.hyper.rate_at(step, self.steps)

    def apply(self, grads: Arrays, step: int, total: Total) -> None:
        """Change the parameters that have gradients, in place; the gradients are used up.

        `total` sums a small array over all ranks. It is called once where norms are needed, twice
        for "lamb" with clipping, and equally often by all ranks.
        """
        match self.hyper.optimiser:
            case "sgd":
                self._clip(grads, total)
                for part, rate in self._parts(grads, step):
                    update(self.ops, self.state, part, self.specs, self.hyper, rate)
            case "adamw":
                self._clip(grads, total)
                self._adam(grads, step)
                self._adamw(grads, step)
            case "lars":
                self._lars(grads, step, total)
            case "lamb":
                self._clip(grads, total)
                self._adam(grads, step)
                self._lamb(grads, step, total)

    def average(self) -> None:
        """Move the running mean of parameters and buffers: mean <- ema mean + (1 - ema) w.

        To be called once after each step.
        """
        held = self.state.params | self.state.buffers
        for name, mean in self.state.ema.items():
            # mean - w times 1 - ema: float32 does not hold ema near 1 as exactly
            self.ops.descend(mean, held[name], self.hyper.ema - 1.0, -1.0)

    def _parts(self, grads: Arrays, step: int) -> list[tuple[Arrays, float]]:
        """Return gradients of body and head with the rates of their weights."""
        head = {name: g for name, g in grads.items() if name in self.head}
        body = {name: g for name, g in grads.items() if name not in self.head}
        return [(body, self.rate_at(step)), (head, self.rate_at(step) * self.head_rate)]

    def _rate(self, name: str, step: int) -> float:
        rate = self.rate_at(step) * (self.head_rate if name in self.head else 1.0)
        return rate * self.hyper.bias_rate if self.specs[name].bias else rate

    def _decay(self, name: str) -> float:
        return 0.0 if self.specs[name].bias else self.hyper.decay

    def _adapted(self, arrays: Mapping[str, Array]) -> Arrays:
        """Return those whose rate follows their norms: what weight decay applies to."""
        return {name: a for name, a in arrays.items() if not self.specs[name].bias}

    def _clip(self, grads: Arrays, total: Total) -> None:
        """Scale gradients so that their norm is at most `clip`, as `clip_grad_norm_` does."""
        if self.hyper.clip:
            (norms,) = self._norms([grads], total)
            self._shrink(grads, norms)

    def _shrink(self, grads: Arrays, norms: Mapping[str, float]) -> float:
        """Scale gradients with these norms, and return by what."""
        if not self.hyper.clip:
            return 1.0
        norm = sum(each * each for each in norms.values()) ** 0.5
        factor = min(self.hyper.clip / (norm + CLIP_EPS), 1.0)
        if factor < 1.0:
            for g in grads.values():
                g *= factor
        return factor

    def _norms(self, kinds: list[Arrays], total: Total) -> list[dict[str, float]]:
        assert self.norms is not None
        return self.norms.take(self.ops, kinds, total)

    def _lars(self, grads: Arrays, step: int, total: Total) -> None:
        """v <- momentum v - rate r (g + decay w), then w <- w + v, with the ratio
        r = trust |w| / (|g| + decay |w|): You, Gitman and Ginsburg 2017, algorithm 1.
        """
        weights = self._adapted({name: self.state.params[name] for name in grads})
        of_w, of_g = self._norms([weights, grads], total)
        shrunk = self._shrink(grads, of_g)
        for name, g in grads.items():
            rate, decay = self._rate(name, step), self._decay(name)
            size, change = of_w[name], shrunk * of_g[name]
            if name in weights and size and change:
                rate *= self.hyper.trust * size / (change + decay * size)
            w, v = self.state.params[name], self.state.velocity[name]
            self.ops.sgd(w, v, g, rate, self.hyper.momentum, decay)

    def _adam(self, grads: Arrays, step: int) -> None:
        """Update the moments, and make of the gradients Adam's directions."""
        hyper, state = self.hyper, self.state
        for name, g in grads.items():
            moments = state.moment1[name], state.moment2[name]
            self.ops.adam(*moments, g, (hyper.beta1, hyper.beta2), hyper.eps, step + 1)

    def _adamw(self, directions: Arrays, step: int) -> None:
        """w <- w - rate (direction + decay w): Loshchilov and Hutter 2019, algorithm 2."""
        for name, d in directions.items():
            w = self.state.params[name]
            self.ops.descend(w, d, self._rate(name, step), self._decay(name))

    def _lamb(self, directions: Arrays, step: int, total: Total) -> None:
        """w <- w - rate |w| / |u| u, with u = direction + decay w: You et al. 2020, algorithm 2."""
        weights = self._adapted({name: self.state.params[name] for name in directions})
        for name, w in weights.items():
            self.ops.descend(directions[name], w, -self.hyper.decay, 0.0)
        of_w, of_u = self._norms([weights, self._adapted(directions)], total)
        for name, u in directions.items():
            size, change = of_w[name], of_u[name]
            ratio = size / change if name in weights and size and change else 1.0
            self.ops.descend(self.state.params[name], u, self._rate(name, step) * ratio, 0.0)
