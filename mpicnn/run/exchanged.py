"""Trained networks for other programs, and theirs as checkpoints of a run that did no step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpicnn.checkpoint import Checkpoints, Tensor, read_meta, read_outline, read_tensors
from mpicnn.data.check import wrong_names
from mpicnn.division.planfile import plan_toml
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.exchange.network import Network, Pixels, check_arrays, for_any_classes
from mpicnn.models.entry import known
from mpicnn.precision import Name, dtype_of
from mpicnn.run.directory import CHECKPOINTS, write_text
from mpicnn.run.distributed import outline
from mpicnn.run.load import described
from mpicnn.run.meta import check_meta
from mpicnn.run.network_file import file_of
from mpicnn.run.resuming import NO_DATA
from mpicnn.run.starting import sources_of
from mpicnn.settings.definitions import Settings
from mpicnn.step.state import kept_by

NETWORK = "network.toml"


@dataclass(frozen=True)
class Extras:
    """Hold the names of the classes, and how images are normalised."""

    classes: tuple[str, ...]
    pixels: Pixels


def trained(path: Path) -> Network:
    """Return the network in a checkpoint: the mean of its weights, where the run kept one.

    Raises UserError where the file is damaged.
    """
    meta = read_meta(path)
    settings = check_meta(meta, path)
    model = described(meta, path, "", file_of(meta, path))
    sources = sources_of(read_outline(path)[2], bool(settings.ema))
    held = read_tensors(path, {full.partition("/")[0] for full in sources.values()})
    arrays = {name: held[full] for name, full in sources.items()}
    check_arrays(model, arrays, str(path))
    pixels = Pixels(tuple(map(float, meta["mean"])), tuple(map(float, meta["std"])))
    return Network(model, arrays, tuple(meta["classes"]), pixels)


def check_directory(out: Path, overwrite: bool) -> None:
    """Raise UserError where a network should not, or cannot, be written to `out`."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; expected a directory, or none yet")
    checkpoints = Checkpoints(out / CHECKPOINTS, keep=1)
    steps = [path for path in checkpoints.paths() if path.name != "step-00000000.h5"]
    if steps or checkpoints.best.exists():
        raise UserError(f"{out}: is the directory of a run; give another")
    if any(out.iterdir()) and not overwrite:
        raise UserError(f"{out}: is not empty; give another, or --overwrite")


def save(network: Network, extras: Extras, out: Path) -> Path:
    """Write a network's description and its weights, as checkpoint 0 of a run; return its path.

    Raises UserError where that is not possible, or where other programs' names cannot be ours.
    """
    model = network.model
    if not known(model.describe()):
        raise UserError(f"{model.name}: has layers of a class of your own; train it by --init")
    if why := wrong_names(list(extras.classes)):
        raise UserError(f"names of classes: expected {why}")
    double = any(array.dtype == np.float64 for array in network.arrays.values())
    precision: Name = "float64" if double else "float32"
    settings = Settings(model=str((out / NETWORK).absolute()), precision=precision)
    meta = {
        "step": 0,
        "epoch": 0.0,
        "seed": settings.seed,
        "settings": settings.to_json(),
        "name": model.name,
        "input_shape": list(model.input_shape),
        "model": model.describe(),
        "image_shape": list(model.input_shape),
        "classes": list(extras.classes),
        "mean": list(extras.pixels.mean),
        "std": list(extras.pixels.std),
        "plan": plan_toml(preset("data", model, (1,))),
        "data": NO_DATA,
    }
    check_meta(meta, out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}") from None
    write_text(out / NETWORK, for_any_classes(model))
    tensors = _tensors(network, settings)
    return Checkpoints(out / CHECKPOINTS, keep=1).save(MPI.COMM_SELF, tensors, meta)


def _tensors(network: Network, settings: Settings) -> dict[str, Tensor]:
    """Return all arrays of a checkpoint; what an optimiser keeps is 0 before the first step."""
    kept = kept_by(settings.optimiser, settings.ema)
    found = {}
    for full, (shape, dtype) in outline(network.model, dtype_of(settings.precision), kept).items():
        section, _, name = full.partition("/")
        held = network.arrays[name] if section in ("params", "buffers") else np.zeros(shape)
        block = tuple(slice(0, n) for n in shape)
        found[full] = Tensor(shape, dtype, block, np.ascontiguousarray(held, dtype))
    return found
