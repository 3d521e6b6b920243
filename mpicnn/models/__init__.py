"""Networks: by name, from a user's file, or from a description."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mpicnn.errors import UserError
from mpicnn.models.entry import Node
from mpicnn.models.files import python_layers, toml_layers
from mpicnn.models.freezing import freeze
from mpicnn.models.model import Model
from mpicnn.models.zoo import ZOO

NAMES: tuple[str, ...] = tuple(ZOO)


def load(name_or_path: str | Path, input_shape: Iterable[int], classes: int) -> Model:
    """Return the network of that name, or of that Python or TOML file, for images and classes.

    `input_shape` is (c, h, w). Raises UserError if there is no such network, if it does not fit
    the images, or if it does not end in `classes` numbers.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"network input {shape}, expected (channels, height, width), each >= 1")
    if classes < 1:
        raise UserError(f"{classes} classes, expected at least 1")
    name = str(name_or_path)
    path = Path(name_or_path)
    if name in ZOO:
        layers: list[Node] = list(ZOO[name](shape, classes))
    elif path.suffix not in (".py", ".toml"):
        raise UserError(
            f"unknown network {name!r}, expected one of {', '.join(NAMES)}, or the path of a .py "
            "or .toml file"
        )
    elif not path.is_file():
        raise UserError(f"{path}: no such file, expected a network in Python or TOML")
    else:
        name = path.stem
        if path.suffix == ".py":
            layers = python_layers(path, shape, classes)
        else:
            layers = toml_layers(path, classes)
    model = Model(name, shape, tuple(layers))
    if model.classes != classes:
        raise UserError(
            f"network {name}: ends in {model.classes} numbers per example, expected {classes}, one "
            "per class"
        )
    return model


__all__ = ["NAMES", "Model", "freeze", "load"]
