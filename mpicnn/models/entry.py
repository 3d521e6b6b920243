"""One layer as plain data: the entries of which checkpoints and TOML files are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from mpicnn.errors import UserError
from mpicnn.layers import (
    GELU,
    LRN,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    HardSwish,
    LeakyReLU,
    Linear,
    MaxPool,
    Multiply,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Tanh,
)
from mpicnn.layers.base import Layer

Named = tuple[str, Layer]
Node = tuple[str, Layer] | tuple[str, Layer, Sequence[str]]
"""A layer with its name, and the names of the layers that it reads where it is not the one before.
"""

TYPES: Mapping[str, type[Layer]] = MappingProxyType(
    {
        "conv": Conv,
        "linear": Linear,
        "maxpool": MaxPool,
        "avgpool": AvgPool,
        "globalavgpool": GlobalAvgPool,
        "add": Add,
        "concat": Concat,
        "multiply": Multiply,
        "lrn": LRN,
        "batchnorm": BatchNorm,
        "groupnorm": GroupNorm,
        "relu": ReLU,
        "relu6": ReLU6,
        "leakyrelu": LeakyReLU,
        "silu": SiLU,
        "hardswish": HardSwish,
        "sigmoid": Sigmoid,
        "tanh": Tanh,
        "gelu": GELU,
        "dropout": Dropout,
        "flatten": Flatten,
    }
)


KINDS = ("contraction", "channelwise", "examplewise")
DECLARED: Mapping[str, frozenset[str]] = MappingProxyType(
    {"reads": frozenset({"x", "y"}), "views": frozenset({"y", "dx"})}
)
"""What a layer may name in attributes that are sets."""


def check_declared(layer: Layer, where: str) -> None:
    """Raise UserError, which `where` opens, for attributes of a layer's class that say nothing.

    Programs believe them: a wrong one would free or write over what is still read.
    """
    if layer.kind not in KINDS:
        raise UserError(f"{where}: kind {layer.kind!r}, expected one of {', '.join(KINDS)}")
    for name in ("convolves", "joins", "overwrites"):
        value: Any = getattr(layer, name)
        if not isinstance(value, bool):
            raise UserError(f"{where}: {name} {value!r}, expected True or False")
    for name, able in DECLARED.items():
        value = getattr(layer, name)
        if not isinstance(value, Set) or not value <= able:
            known = ", ".join(sorted(able))
            raise UserError(f"{where}: {name} {value!r}, expected a set of none or more of {known}")


def describe(name: str, layer: Layer) -> dict[str, Any]:
    """Return name, type and every setting of `layer` as JSON would give them back.

    The type of a layer that is not one of `TYPES` is the name of its class: enough to tell
    networks apart, not enough for `build`.
    """
    own = type(layer).__name__
    own = f"own {own}" if own in TYPES else own
    kind = next((kind for kind, cls in TYPES.items() if type(layer) is cls), own)
    described: dict[str, Any] = {"name": name, "type": kind}
    settings: tuple[Field[Any], ...] = fields(layer) if is_dataclass(layer) else ()
    for f in settings:
        if f.init:
            value = getattr(layer, f.name)
            described[f.name] = list(value) if isinstance(value, tuple) else value
    return described


def known(description: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether all layers described are of `TYPES`, so that `build` can make them."""
    kinds = [entry.get("type") for entry in description]
    return all(isinstance(kind, str) and kind in TYPES for kind in kinds)


def build(entry: Mapping[str, Any], where: str) -> Node:
    """Return the named layer that `entry` describes, and what it reads; `where` opens the message
    of every error.

    Raises UserError for an unknown type, an unknown, missing or impossible setting.
    """
    settings = dict(entry)
    name, kind = settings.pop("name", None), settings.pop("type", None)
    inputs = read_inputs(settings.pop("inputs", ()), where)
    if not isinstance(name, str):
        raise UserError(f"{where}: name {name!r}, expected a text such as 'conv1'")
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{where}: type {kind!r}, expected one of {', '.join(sorted(TYPES))}")
    known = {f.name: f for f in fields(TYPES[kind]) if f.init}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            takes = ", ".join(known) or "no settings"
            raise UserError(f"{where}: unknown setting {key!r}, {kind} takes {takes}")
    for key, f in known.items():
        if key not in settings and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}: {kind} needs the setting {key!r}")
    try:
        layer = TYPES[kind](
            **{key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}
        )
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error
    return (name, layer, inputs) if inputs else (name, layer)


def read_inputs(found: Any, where: str) -> tuple[str, ...]:
    """Return the names of the layers that a layer reads. Raises UserError for anything else."""
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: inputs {found!r}, expected names of layers")
    return tuple(names)
