"""Layers that do not learn: which of a network's they are, by patterns of names."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

from mpicnn.errors import UserError
from mpicnn.models.model import Model
from mpicnn.text import listed

_SHOWN = 4


def freeze(model: Model, patterns: str) -> Model:
    """Return a network in which layers whose names fit one of the `patterns` do not learn.

    Patterns are joined by commas, each as in `fnmatch`: * stands for any characters, ? for one,
    [ab] for a or b, [!ab] for another. Of the layers that fit, those with weights or running
    statistics are frozen: neither changes, and the layer computes in training as in tests.
    Raises UserError for a pattern that no such layer fits, and where nothing is left to learn.
    """
    if not patterns:
        return model
    weighted = model.weighted
    frozen: set[str] = set()
    for pattern in patterns.split(","):
        fitting = {name for name in weighted if fnmatchcase(name, pattern)}
        if not fitting:
            raise UserError(f"freeze {pattern}: {_why_not(model, pattern)}")
        frozen |= fitting
    found = replace(model, layers=model.nodes, frozen=frozenset(frozen))
    if not found.learnt(found.param_specs()):
        raise UserError(
            f"freeze {patterns}: freezes all layers of {model.name}, and leaves none to learn; "
            f"leave the last one out, {weighted[-1]}"
        )
    return found


def frozen_text(model: Model) -> str:
    """Return how many of a network's parameters are frozen, as "416 of 117,066 parameters"."""
    specs = model.param_specs()
    whole, learnt = (sum(prod(p.shape) for p in s.values()) for s in (specs, model.learnt(specs)))
    return f"{whole - learnt:,} of {whole:,} parameters"


def _why_not(model: Model, pattern: str) -> str:
    """Return why a pattern freezes nothing, and which names it may have meant."""
    weighted = model.weighted
    fitting = [name for name, _ in model.layers if fnmatchcase(name, pattern)]
    if fitting:
        return (
            f"fits only layers without weights, like {fitting[0]}; expected names of layers with "
            f"weights, like {weighted[0]}"
        )
    import difflib  # most runs do without it, and start sooner

    bare = re.sub(r"[*?\[\]!]", "", pattern)
    near = difflib.get_close_matches(bare, weighted, _SHOWN, 0.4) or weighted[:_SHOWN]
    return f"no layer of {model.name} is called so; the nearest with weights: {listed(near)}"
