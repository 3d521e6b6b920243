"""How fast every rank convolves, and the shares that follow from it (Marques, section 4.1.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import numpy as np
from numpy.typing import DTypeLike

from mpicnn import __version__
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.ranks import Rank, gather_ranks
from mpicnn.division.work import whole_layer_work
from mpicnn.documents import read_json
from mpicnn.errors import UserError
from mpicnn.layers.base import Context, Layer, Shape
from mpicnn.models.entry import describe
from mpicnn.ops.interface import Backend
from mpicnn.precision import dtype_of

if TYPE_CHECKING:
    from mpicnn.devices.choice import Device
    from mpicnn.models import Model

AnyKind = TypeVar("AnyKind")

REPEATS = 3
WORK = 4e9
"""FLOP per layer and pass that are enough to time: a few tens of milliseconds on a CPU core."""
READABLE_S = 0.01
"""What a pass must take for its time to be the device's and not that of starting it."""


FORMAT = 2
"""Version of the file. The first had no number, and nothing of hosts, devices and threads."""

RANK_FIELDS = get_type_hints(Rank)


@dataclass(frozen=True)
class Conditions:
    """Say what is timed, and on what: speeds hold for this alone.

    `convolutions` is a digest of the network's convolutions and their sizes: networks of one name
    may differ.
    """

    model: str
    convolutions: str
    input_shape: tuple[int, ...]
    precision: str
    convolution: str
    ranks: tuple[Rank, ...]

    def difference(self, now: Conditions) -> str:
        """Return in words what first differs now, "" for nothing."""
        pairs: list[tuple[str, object, object]] = [
            ("model", self.model, now.model),
            ("digest of its convolutions", self.convolutions, now.convolutions),
            ("image shape", self.input_shape, now.input_shape),
            ("precision", self.precision, now.precision),
            ("convolution", self.convolution, now.convolution),
            ("number of ranks", len(self.ranks), len(now.ranks)),
        ]
        for number, (old, new) in enumerate(zip(self.ranks, now.ranks, strict=False)):
            pairs += [
                (f"{each} of rank {number}", getattr(old, each), getattr(new, each))
                for each in RANK_FIELDS
            ]
        odd = (pair for pair in pairs if pair[1] != pair[2])
        return next((f"{what}: {old} when measured, {new} now" for what, old, new in odd), "")


def conditions(mesh: Mesh, device: Device, model: Model, precision: str) -> Conditions:
    """Return what these ranks compute, and on what. Collective."""
    timed = [(describe(name, layer), shape) for name, layer, shape in _timed(model)]
    return Conditions(
        model.name,
        sha256(json.dumps(timed).encode()).hexdigest()[:12],
        tuple(model.input_shape),
        precision,
        device.convolution,
        tuple(gather_ranks(mesh, device)),
    )


@dataclass(frozen=True)
class Calibration:
    """Hold the seconds that every rank needed for the same convolutions, layer by layer.

    `seconds[r][i]` is rank r's median time of layer i, forward and backward, for one example;
    `written` says by which version of mpicnn that was found out, and when.
    """

    conditions: Conditions
    layers: tuple[str, ...]
    seconds: tuple[tuple[float, ...], ...]
    written: str

    @property
    def shares(self) -> tuple[float, ...]:
        """Return w_i = (max t / t_i) / sum_j (max t / t_j) (Marques, eq. 1)."""
        return shares_of([sum(row) for row in self.seconds])

    def to_json(self) -> str:
        """Return the calibration as readable text, its shares with it."""
        now = self.conditions
        ranks = [
            asdict(rank) | {"seconds": row, "share": share}
            for rank, row, share in zip(now.ranks, self.seconds, self.shares, strict=True)
        ]
        document = {"format": FORMAT, "written": self.written} | asdict(now)
        return json.dumps(document | {"layers": self.layers, "ranks": ranks}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Calibration:
        """Return what `to_json` wrote; other keys are passed over.

        Raises UserError for anything else.
        """
        try:
            found = read_json(text)
            if _is(int, found["format"]) > FORMAT:
                raise UserError(
                    f"calibration {where}: was written by a newer mpicnn ({found['written']}); "
                    "give another name to measure anew"
                )
            ranks = tuple(
                Rank(**{each: _is(kind, row[each]) for each, kind in RANK_FIELDS.items()})
                for row in found["ranks"]
            )
            made = cls(
                Conditions(
                    _is(str, found["model"]),
                    _is(str, found["convolutions"]),
                    tuple(_is(int, n) for n in found["input_shape"]),
                    _is(str, found["precision"]),
                    _is(str, found["convolution"]),
                    ranks,
                ),
                tuple(_is(str, name) for name in found["layers"]),
                tuple(tuple(float(t) for t in row["seconds"]) for row in found["ranks"]),
                _is(str, found["written"]),
            )
            sound = bool(ranks and made.layers) and all(
                len(row) == len(made.layers) and all(0 < t < float("inf") for t in row)
                for row in made.seconds
            )
        except (ValueError, KeyError, TypeError, OverflowError):
            sound = False
        if not sound:
            raise UserError(f"calibration {where}: not a calibration; delete it to measure anew")
        return made


def _is(kind: type[AnyKind], value: Any) -> AnyKind:
    """Return a value of this kind. Raises TypeError for another."""
    if type(value) is not kind:
        raise TypeError
    return value


def shares_of(times: Sequence[float]) -> tuple[float, ...]:
    """Return every device's share of the kernels for its time `t_i` (s) (Marques, eq. 1)."""
    slowest = max(times)
    speeds = [slowest / t for t in times]
    return tuple(speed / sum(speeds) for speed in speeds)


def measure(
    mesh: Mesh, ops: Backend, model: Model, conditions: Conditions, batch: int
) -> Calibration:
    """Time the network's own convolutions at their real sizes on all ranks at the same time.

    Inputs are random; a layer is given as many examples as make its time readable, `batch` at
    most. Collective.
    Raises UserError for a network without convolutions.
    """
    convolutions = _timed(model)
    if not convolutions:
        raise UserError(f"calibration: {model.name} has no convolutions to time; give the shares")
    mine = []
    for _, layer, shape in convolutions:
        mesh.collect(np.zeros(1))
        mine.append(_time(ops, layer, shape, dtype_of(conditions.precision), batch))
    table = mesh.collect(np.array(mine))
    return Calibration(
        conditions,
        tuple(name for name, _, _ in convolutions),
        tuple(tuple(float(t) for t in row) for row in table),
        f"mpicnn {__version__}, {datetime.now(UTC).isoformat(timespec='seconds')}",
    )


def _timed(model: Model) -> list[tuple[str, Layer, Shape]]:
    """Return the network's convolutions with their names and the shapes of their inputs."""
    return [
        (name, layer, shape)
        for (name, layer), shape in zip(model.layers, model.fed, strict=True)
        if layer.convolves
    ]


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
        y, made = layer.forward(ops, x, params, run)
        layer.backward(ops, dy, layer.tape(x, y, made), params, run)
        ops.synchronize()
        times.append(perf_counter() - since)
    return float(np.median(times[1:]))


def kept(file: str) -> str:
    """Return the text of a calibration file, "" where there is none yet.

    Raises UserError where it cannot be read.
    """
    path = Path(file)
    try:
        return path.read_text() if file and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration {file}: cannot be read: {error}") from None


def reuse(text: str, where: str, now: Conditions) -> Calibration | str:
    """Return a saved calibration, or in words why it does not hold now.

    Raises UserError for what is no calibration.
    """
    try:
        document = read_json(text)
        if document["backends"] and "format" not in document:
            return "was written by an older mpicnn, without hosts, devices and threads"
    except (ValueError, KeyError, TypeError):
        pass
    found = Calibration.from_json(text, where)
    return found.conditions.difference(now) or found
