"""Weights alone: safetensors, in and out, and PyTorch's state_dict, in.

The layouts of our arrays are PyTorch's: (o, c / groups, h, w) for convolutions, (o, c) for fully
connected layers. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpicnn import models
from mpicnn.documents import read_json
from mpicnn.errors import UserError
from mpicnn.exchange.names import match
from mpicnn.exchange.network import Arrays, Network, check_arrays, metadata, read_metadata
from mpicnn.exchange.packages import needed
from mpicnn.models import Model
from mpicnn.models.zoo import ZOO, made_for

STATE_DICTS = (".pt", ".pth")
_NETWORK = "network"


def to_safetensors(network: Network) -> bytes:
    """Return the bytes of a file with a network's arrays, by the names that checkpoints have.

    Its metadata describe the network, so that `from_tensors` needs nothing else. Raises UserError
    where safetensors is missing.
    """
    numpy = needed("safetensors.numpy", "safetensors files")
    model = network.model
    described = {
        "name": model.name, "input_shape": model.input_shape, "layers": model.describe(),
    }  # fmt: skip
    said = metadata(network) | {_NETWORK: json.dumps(described)}
    arrays = {name: np.ascontiguousarray(array) for name, array in network.arrays.items()}
    made: bytes = numpy.save(arrays, said)
    return made


@dataclass(frozen=True)
class _Held:
    """What a file holds: arrays, what it says beside them, whether their order is the modules'."""

    arrays: Arrays
    said: Mapping[str, str]
    ordered: bool


def from_tensors(path: Path, model: str = "", size: Sequence[int] | None = None) -> Network:
    """Return the network of a safetensors file or a state_dict.

    `model` is a network's name or file; "" for the one that the file describes, as `to_safetensors`
    does. `size` is the shape of its images (c, h, w), without which it is that for which a network
    with a name was made. Raises UserError where the file cannot be read or does not fit.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected weights")
    held = _state_dict(path) if path.suffix in STATE_DICTS else _safetensors(path)
    try:
        if model:
            found = _fitted(held, model, size)
        else:
            found = _described(held)
        arrays, notes = found.arrays, found.notes
        check_arrays(found.model, arrays, "the file")
        channels = found.model.input_shape[0]
        classes, pixels = read_metadata(held.said, channels, found.model.classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Network(found.model, arrays, classes, pixels, notes=notes)


def _described(held: _Held) -> Network:
    """Return the network that the file itself describes."""
    if _NETWORK not in held.said:
        raise UserError("holds weights and no network: give one by --model NAME or FILE.py")
    try:
        said = read_json(held.said[_NETWORK])
        model = Model.from_description(said["name"], said["input_shape"], said["layers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"its description of the network is damaged: {error}") from None
    return Network(model, _floats(held.arrays))


def _fitted(held: _Held, name: str, size: Sequence[int] | None) -> Network:
    """Return the named network with the file's arrays, and as many classes as they have."""
    if size is None and name not in ZOO:
        raise UserError(f"network {name}: give the shape of its images by --input CxHxW")
    shape = made_for(name)[0] if size is None else tuple(size)
    shapes = {full: array.shape for full, array in held.arrays.items()}
    trial = models.load(name, shape, 1000)
    found = match(trial, shapes, held.ordered)
    last = trial.weighted[-1]
    rows = next(shapes[found.names[n]] for n in found.names if n.startswith(f"{last}."))
    model = models.load(name, shape, rows[0])
    arrays = _floats({ours: held.arrays[theirs] for ours, theirs in found.names.items()})
    notes = [] if found.by == "name" else [f"layers matched by {found.by}, not by name"]
    if found.left:
        more = f" and {len(found.left) - 1} more" if len(found.left) > 1 else ""
        notes.append(f"left out, as {name} has no such arrays: {found.left[0]}{more}")
    return Network(model, arrays, notes=tuple(notes))


def _floats(arrays: Arrays) -> dict[str, Any]:
    """Return arrays of float32, those of float64 as they are. Raises UserError for others."""
    found = {}
    for name, array in arrays.items():
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise UserError(f"{name} holds {array.dtype}, expected floating-point numbers")
        found[name] = array if array.dtype == np.float64 else array.astype(np.float32)
    if len({array.dtype for array in found.values()}) > 1:
        found = {name: array.astype(np.float32) for name, array in found.items()}
    return found


def _safetensors(path: Path) -> _Held:
    package = needed("safetensors", "safetensors files")
    try:
        with package.safe_open(str(path), framework="numpy") as file:
            said = dict(file.metadata() or {})
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
    except Exception as error:  # the package has its own, and Python's for what NumPy lacks
        raise UserError(f"{path}: not a valid safetensors file: {_line(error)}") from None
    return _Held(arrays, said, ordered=False)


def _state_dict(path: Path) -> _Held:
    """Read what `torch.save` wrote, of which nothing is executed."""
    torch = needed("torch", ".pt files")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and torch each have their own
        raise UserError(
            f"{path}: not a state_dict that can be read without running its code: {_line(error)}; "
            "save model.state_dict() by torch.save"
        ) from None
    for inner in ("state_dict", "model_state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(inner), dict):
            held = held[inner]
    if not (isinstance(held, dict) and held and all(map(torch.is_tensor, held.values()))):
        raise UserError(f"{path}: not a state_dict: expected names and tensors")
    arrays = {
        str(name): (tensor.float() if tensor.dtype in (torch.bfloat16, torch.half) else tensor)
        .detach().cpu().contiguous().numpy()
        for name, tensor in held.items()
    }  # fmt: skip
    return _Held(arrays, {}, ordered=True)


def _line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().split("\n")[0]
