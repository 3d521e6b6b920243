"""A network with its weights, as files of other formats hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mpicnn.errors import UserError
from mpicnn.exchange.pixels import Pixels as Pixels
from mpicnn.layers import Conv, Linear
from mpicnn.models.model import Model
from mpicnn.ops.interface import Array

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Network:
    """Hold a network, and its parameters and buffers whole, by full name ("conv1.w").

    `classes` are the names of its outputs, `pixels` how its images are normalised; both are None
    where a file does not say. `inside` is what its graph itself began with: (x - mean) / std of
    images x, however these were normalised. `notes` are what was done that may not be meant.
    """

    model: Model
    arrays: Arrays
    classes: tuple[str, ...] | None = None
    pixels: Pixels | None = None
    inside: Pixels | None = None
    notes: Sequence[str] = field(default=())


def check_arrays(model: Model, arrays: Arrays, where: str) -> None:
    """Raise UserError unless `arrays` are just those of the network, in its shapes, and finite."""
    specs = model.param_specs() | model.buffer_specs()
    for name in specs.keys() - arrays.keys():
        raise UserError(f"{where}: has no {name}, which {model.name} needs")
    for name in arrays.keys() - specs.keys():
        raise UserError(f"{where}: has {name}, which {model.name} does not know")
    for name, spec in specs.items():
        if arrays[name].shape != spec.shape:
            raise UserError(
                f"{where}: {name} is {_text(arrays[name].shape)}, but {_text(spec.shape)} in "
                f"{model.name}"
            )
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{where}: {name} has numbers that are not finite")


def for_any_classes(model: Model) -> str:
    """Return the network as the text of a TOML file whose last layer follows the classes.

    Where the last layer with weights has an output for each class, the file says `o = "classes"`,
    so that another number of them makes a network of the same other layers. Else, and where a
    layer behind it needs the number as it is, the file is for this number of classes alone.
    """
    tables = model.to_toml().split("\n\n")
    last = model.weighted[-1]
    for at, (name, layer) in enumerate(model.layers):
        follows = isinstance(layer, Conv | Linear) and layer.groups == 1
        if name == last and follows:
            tables[at] = tables[at].replace(f"\no = {model.classes}\n", '\no = "classes"\n', 1)
    return "\n\n".join(tables).rstrip("\n") + "\n"


def metadata(network: Network) -> dict[str, str]:
    """Return what files say of a network beside its graph and weights: texts by their names."""
    found = {"format": "mpicnn"}
    if network.classes is not None:
        found["classes"] = json.dumps(network.classes)
    if network.pixels is not None:
        found["mean"] = json.dumps(network.pixels.mean)
        found["std"] = json.dumps(network.pixels.std)
    return found


def read_metadata(
    found: Mapping[str, str], channels: int, outputs: int
) -> tuple[tuple[str, ...] | None, Pixels | None]:
    """Return the classes and the normalisation that `metadata` wrote, None for what is not there.

    What does not fit the network, or is not such a text, counts as not there.
    """
    try:
        classes = json.loads(found.get("classes", "null"))
        mean, std = (json.loads(found.get(name, "null")) for name in ("mean", "std"))
        if not (isinstance(classes, list) and len(classes) == outputs):
            classes = None
        if classes is not None and not all(isinstance(name, str) for name in classes):
            classes = None
        pixels = None
        if isinstance(mean, list) and isinstance(std, list) and len(mean) == len(std) == channels:
            pixels = Pixels(tuple(map(float, mean)), tuple(map(float, std)))
    except (ValueError, TypeError):
        return None, None
    return (None if classes is None else tuple(classes)), pixels


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "one number"
