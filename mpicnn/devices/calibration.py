"""How fast every rank convolves, and the shares that follow from it (Marques, section 4.1.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from mpicnn.comm.mesh import Mesh
from mpicnn.division.work import whole_layer_work
from mpicnn.documents import read_json
from mpicnn.errors import UserError
from mpicnn.layers.base import Context, Layer, Shape
from mpicnn.ops.interface import Backend
from mpicnn.precision import dtype_of

if TYPE_CHECKING:
    from mpicnn.models import Model

REPEATS = 3
WORK = 4e9
"""FLOP per layer and pass that are enough to time: a few tens of milliseconds on a CPU core."""
READABLE_S = 0.01
"""What a pass must take for its time to be the device's and not that of starting it."""


@dataclass(frozen=True)
class Calibration:
    """Hold the seconds that every rank needed for the same convolutions, layer by layer.

    `seconds[r][i]` is rank r's median time of layer i, forward and backward, for one example.
    """

    model: str
    input_shape: tuple[int, ...]
    precision: str
    backends: tuple[str, ...]
    layers: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Return w_i = (max t / t_i) / sum_j (max t / t_j) (Marques, eq. 1)."""
        return shares_of([sum(row) for row in self.seconds])

    def to_json(self) -> str:
        """Return the calibration as readable text, its shares with it."""
        return json.dumps(asdict(self) | {"shares": self.shares}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Calibration:
        """Return what `to_json` wrote. Raises UserError for anything else."""
        try:
            found = read_json(text)
            made = cls(
                str(found["model"]),
                tuple(int(n) for n in found["input_shape"]),
                str(found["precision"]),
                tuple(str(b) for b in found["backends"]),
                tuple(str(n) for n in found["layers"]),
                tuple(tuple(float(t) for t in row) for row in found["seconds"]),
            )
            sound = all(
                len(row) == len(made.layers) and all(0 < t < float("inf") for t in row)
                for row in made.seconds
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            sound = False
        if not sound:
            raise UserError(f"calibration {where}: not a calibration; delete it to measure anew")
        return made


def shares_of(times: Sequence[float]) -> tuple[float, ...]:
    """Return every device's share of the kernels for its time `t_i` (s) (Marques, eq. 1)."""
    slowest = max(times)
    speeds = [slowest / t for t in times]
    return tuple(speed / sum(speeds) for speed in speeds)


def measure(mesh: Mesh, ops: Backend, model: Model, precision: str, batch: int) -> Calibration:
    """Time the network's own convolutions at their real sizes on all ranks at the same time.

    Inputs are random; a layer is given as many examples as make its time readable, `batch` at
    most. Collective.
    Raises UserError for a network without convolutions.
    """
    convolutions = [
        (name, layer, shape)
        for (name, layer), shape in zip(model.layers, model.shapes(), strict=False)
        if layer.convolves
    ]
    if not convolutions:
        raise UserError(f"calibration: {model.name} has no convolutions to time; give the shares")
    mine = []
    for _, layer, shape in convolutions:
        mesh.collect(np.zeros(1))
        mine.append(_time(ops, layer, shape, dtype_of(precision), batch))
    table = mesh.collect(np.array(mine))
    return Calibration(
        model.name,
        tuple(model.input_shape),
        precision,
        tuple(mesh.texts(ops.NAME)),
        tuple(name for name, _, _ in convolutions),
        tuple(tuple(float(t) for t in row) for row in table),
    )


def _time(ops: Backend, layer: Layer, shape: Shape, dtype: DTypeLike, batch: int) -> float:
    """Return the median seconds per example of one layer's forward and backward pass.

    Devices that are done in no time are given more examples, as they will be in training.
    """
    flops = whole_layer_work(layer, shape).flops()
    count = int(min(batch, max(1, WORK // flops)))
    while (seconds := _pass(ops, layer, shape, dtype, count)) < READABLE_S and count < batch:
        count = min(batch, 8 * count)
    return seconds / count


def _pass(ops: Backend, layer: Layer, shape: Shape, dtype: DTypeLike, count: int) -> float:
    """Return the median seconds of a layer's forward and backward pass on `count` examples."""
    out = layer.out_shape(shape)
    rng = np.random.default_rng(0)
    params = {
        name: ops.upload(rng.standard_normal(param.shape).astype(dtype))
        for name, param in layer.params(shape).items()
    }
    x = ops.upload(rng.standard_normal((count, *shape)).astype(dtype))
    dy = ops.upload(rng.standard_normal((count, *out)).astype(dtype))
    run = Context(True, 0, 0, 0, count, np.arange(count), (0, out[0]))
    times = []
    for _ in range(1 + REPEATS):
        since = perf_counter()
        _, saved = layer.forward(ops, x, params, run)
        layer.backward(ops, dy, saved, params, run)
        ops.synchronize()
        times.append(perf_counter() - since)
    return median(times[1:])


def check_fits(
    found: Calibration, where: str, model: Model, backends: Sequence[str], precision: str
) -> None:
    """Raise UserError unless a saved calibration was made for this network and these ranks."""
    asked = {
        "model": (found.model, model.name),
        "image shape": (found.input_shape, tuple(model.input_shape)),
        "precision": (found.precision, precision),
        "backends of the ranks": (found.backends, tuple(backends)),
    }
    for what, (then, now) in asked.items():
        if then != now:
            raise UserError(
                f"calibration {where}: {what} was {then}, now {now}; "
                "give another file name to measure anew"
            )


def kept(file: str) -> str:
    """Return the text of a calibration file, "" where there is none yet.

    Raises UserError where it cannot be read.
    """
    path = Path(file)
    try:
        return path.read_text() if file and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration {file}: cannot be read: {error}") from None


def save(found: Calibration, file: str) -> None:
    """Write the calibration if there is a name; raises UserError where that is not possible."""
    try:
        if file:
            Path(file).write_text(found.to_json())
    except OSError as error:
        raise UserError(f"calibration {file}: cannot be written: {error.strerror}") from None
