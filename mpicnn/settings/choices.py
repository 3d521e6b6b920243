"""What can be chosen by name, listed once: for flags, files and plans alike."""

from __future__ import annotations

from typing import Literal

Scheme = Literal["a", "b", "c"]
Sync = Literal["allreduce", "sharded"]
Order = Literal["1f1b", "gpipe"]
RateScheduleName = Literal["constant", "steps", "dexp", "cosine", "polynomial"]
OptimiserName = Literal["sgd", "adamw", "lars", "lamb"]
Scaling = Literal["none", "linear", "sqrt", "owt"]
FcUpdate = Literal["step", "round"]
Normalised = Literal["batch", "micro"]
Paper = Literal["marques", "owt", "survey"]
SimulatedShares = Literal["measured", "speed", "equal"]
