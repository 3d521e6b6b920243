"""The settings of training that say what is learnt from a batch: the loss and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from mpicnn.errors import UserError
from mpicnn.settings.checks import rising, weights_text
from mpicnn.settings.choices import FcUpdate, OptimiserName, RateScheduleName, Scaling
from mpicnn.settings.option import Options, group, option


@group
class OptimiserChoice(Options):
    """Say how weights start and change."""

    heading = "training"
    fixed = True
    optimiser: OptimiserName = option("sgd", "how weights change by their gradients")
    rate: float = option(0.01, "learning rate", gt=0)
    bias_rate: float = option(1.0, "learning rate of biases, as a multiple of rate", ge=0)
    momentum: float = option(0.9, "sgd, lars: momentum", ge=0, lt=1)
    nesterov: bool = option(False, "sgd: Nesterov's momentum")
    beta1: float = option(0.9, "adamw, lamb: decay of the mean of gradients", ge=0, lt=1)
    beta2: float = option(0.999, "adamw, lamb: decay of the mean of their squares", ge=0, lt=1)
    eps: float = option(1e-8, "adamw, lamb: added to what gradients are divided by", gt=0)
    trust: float = option(
        0.001, "lars: trust coefficient, of the norm of weights to that of their change", gt=0
    )
    decay: float = option(
        0.0005, "weight decay; biases and parameters of normalisation have none", ge=0
    )
    clip: float = option(
        0.0, "largest norm of all gradients together; larger ones are scaled down", ge=0,
        unset="off",
    )  # fmt: skip
    ema: float = option(
        0.0, "decay of a running mean of the weights, which tests and predictions then use", ge=0,
        lt=1, unset="off",
    )  # fmt: skip
    schedule: RateScheduleName = option("constant", "how the learning rate changes")
    drops: tuple[float, ...] = option(
        (0.5, 0.75), "schedule steps: when the rate drops, as fractions of the run", "X,X",
        check=rising,
    )  # fmt: skip
    drop_factor: float = option(
        0.1, "schedule steps: what each drop multiplies the rate by", gt=0, lt=1
    )
    power: float = option(2.0, "schedule polynomial: its exponent", gt=0)
    warmup: float = option(0.0, "epochs over which the rate rises to its value", ge=0)
    fc_rate: float = option(
        1.0, "learning rate of fully connected layers, as a multiple of rate", ge=0
    )
    fc_update: FcUpdate = option(
        "step", "update fully connected layers once per step, or per round of scheme b or c"
    )
    scaling: Scaling = option("none", "how the rate scales with batch / reference-batch")
    reference_batch: int = option(128, "batch that rate and decay were chosen for", ge=1)
    seed: int = option(
        1, "seed of initial weights, shuffling, augmentation and dropout", ge=0, le=2**63 - 1
    )

    def check_optimiser(self) -> None:
        """Raise UserError where settings do not fit the optimiser or each other."""
        defaults = {each.name: each.default for each in fields(OptimiserChoice)}
        for name, owners in OWNERS.items():
            if self.optimiser not in owners and getattr(self, name) != defaults[name]:
                raise UserError(
                    f"{name} is for optimiser {' or '.join(owners)}, not {self.optimiser}: leave "
                    "it out, or choose that optimiser"
                )
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs momentum above 0, like 0.9")
        if self.power != defaults["power"] and self.schedule != "polynomial":
            raise UserError(f"power is for schedule polynomial, not {self.schedule}: leave it out")
        if self.scaling == "owt" and self.optimiser in ("lars", "lamb"):
            raise UserError(
                f"scaling owt does not suit optimiser {self.optimiser}, whose steps follow the "
                "norms of the weights: use linear or sqrt"
            )
        if self.fc_update == "round" and (self.optimiser != "sgd" or self.clip):
            what = "clip" if self.optimiser == "sgd" else f"optimiser {self.optimiser}"
            raise UserError(
                f"fc-update round does not go with {what}, which wants the gradients of a whole "
                "step: use fc-update step"
            )


OWNERS: Mapping[str, tuple[OptimiserName, ...]] = MappingProxyType(
    {
        "momentum": ("sgd", "lars"), "nesterov": ("sgd",), "trust": ("lars",),
        "beta1": ("adamw", "lamb"), "beta2": ("adamw", "lamb"), "eps": ("adamw", "lamb"),
    }
)  # fmt: skip
"""The optimisers that a setting belongs to, where it does not belong to all."""


@group
class LossChoice(Options):
    """Say what training lowers."""

    heading = "training"
    fixed = True
    label_smoothing: float = option(
        0.0, "part of each target that is spread over all classes", ge=0, lt=1
    )
    class_weights: str = option(
        "", "weight of each class in the loss: balanced, or numbers like 1,2,1", "WEIGHTS",
        unset="all alike", check=weights_text,
    )  # fmt: skip
