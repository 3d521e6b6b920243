"""Fully connected layers in groups, which other formats know as a matrix with blocks of zeros."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mpicnn.layers import Layer, Linear
from mpicnn.models.model import Model
from mpicnn.ops.interface import Array

KEY = "groups"
"""The name of the text that says which layers have how many groups."""


def whole(w: Array, groups: int) -> Array:
    """Return the matrix (o, c) of a layer with w (o, c / groups): zeros outside its blocks."""
    rows, columns = w.shape[0] // groups, w.shape[1]
    found = np.zeros((w.shape[0], columns * groups), w.dtype)
    for at in range(groups):
        o = slice(at * rows, (at + 1) * rows)
        found[o, at * columns : (at + 1) * columns] = w[o]
    return found


def blocks(w: Array, groups: int) -> Array | None:
    """Return w (o, c / groups) of a matrix (o, c) that is zero outside its blocks; else None."""
    if w.shape[0] % groups or w.shape[1] % groups:
        return None
    columns = w.shape[1] // groups
    parts = np.split(w, groups)
    kept = [part[:, at * columns : (at + 1) * columns] for at, part in enumerate(parts)]
    found = np.concatenate(kept)
    return found if np.array_equal(whole(found, groups), w) else None


def metadata(model: Model) -> dict[str, str]:
    """Return a text that says which fully connected layers have groups, if any has."""
    found = {n: each.groups for n, each in model.layers if isinstance(each, Linear)}
    several = {name: groups for name, groups in found.items() if groups > 1}
    return {KEY: json.dumps(several)} if several else {}


def regrouped(
    name: str, layer: Layer, arrays: Mapping[str, Array], said: Mapping[str, str]
) -> tuple[Layer, Mapping[str, Array]]:
    """Return a layer with the groups that `metadata` says it has, and its arrays (by short name).

    Where the text is none of ours, or the matrix is not zero outside the blocks, it stays whole.
    """
    try:
        groups = json.loads(said.get(KEY, "{}"))[name]
    except (ValueError, TypeError, KeyError):
        return layer, arrays
    if not (isinstance(layer, Linear) and type(groups) is int and groups > 1):
        return layer, arrays
    w = blocks(arrays["w"], groups)
    if w is None:
        return layer, arrays
    return replace(layer, groups=groups), {**arrays, "w": w}
