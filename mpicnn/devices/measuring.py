"""Measure ranks by dry steps, as they are in training, and the links between them.

All ranks at once carry out the real program of their part of a batch, with messages that arrive at
once. So Python, the loss, the update and full caches are in what is measured (Marques, section
4.1.1, times the convolutions alone).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from mpicnn import __version__
from mpicnn.comm.dry import DryMesh
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.calibration import WAYS, Calibration, Conditions, Speed, speed_of
from mpicnn.devices.links import measure_links
from mpicnn.devices.ranks import numbers
from mpicnn.division.compile import compile
from mpicnn.division.operations import Backward, Forward, Loss
from mpicnn.division.placement import coordinates
from mpicnn.division.presets import preset
from mpicnn.division.program import GlobalProgram
from mpicnn.forecast.cost import Counter
from mpicnn.forecast.durations import UPDATE_PASSES
from mpicnn.ops.interface import Backend
from mpicnn.precision import dtype_of
from mpicnn.step.dry import dry_steps
from mpicnn.step.interpreter import Tools
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state
from mpicnn.step.timing import StepTimer

if TYPE_CHECKING:
    from mpicnn.models import Model

PARTS = (4, 2, 1)
"""A batch is run in full, and these parts of it: what a layer takes is a line through them."""


@dataclass
class _Measured:
    """Hold what one rank was timed to take: by pass, (work, s) for each size of the batch."""

    passes: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    convolving: float = 0.0
    layers: float = 0.0
    per_byte: float = 0.0
    start: float = 0.0

    def speed(self) -> Speed:
        """Return what the rank takes."""
        starts, slopes = zip(*map(line, self.passes.values()), strict=True)
        return Speed(
            starts, slopes, self.convolving or self.layers, self.per_byte, self.start
        )  # fmt: skip


def measure(
    mesh: Mesh, ops: Backend, model: Model, conditions: Conditions, batch: int
) -> Calibration:
    """Time the network on all ranks at the same time, and the links between them. Collective.

    Every rank has an equal part of a batch, and of smaller ones; images are random.
    """
    places = mesh.world.size
    found = _Measured()
    for count in sorted({max(batch // part, places) for part in PARTS}):
        _time(mesh, ops, model, count, conditions.precision, found)
    texts = mesh.texts(json.dumps(asdict(found.speed())))
    speeds = (json.loads(text) for text in texts)
    hosts = numbers([rank.host for rank in conditions.ranks])
    return Calibration(
        conditions,
        tuple(found.passes),
        tuple(map(speed_of, speeds)),
        *measure_links(mesh, hosts),
        f"mpicnn {__version__}, {datetime.now(UTC).isoformat(timespec='seconds')}",
    )


def _time(
    mesh: Mesh, ops: Backend, model: Model, count: int, precision: str, found: _Measured
) -> None:
    """Add to `found` what this rank takes for its part of a batch of `count` examples."""
    grid, dtype = (mesh.world.size,), dtype_of(precision)
    coords = coordinates(mesh.world.rank, grid)
    whole = compile(model, preset("data", model, grid), count)
    program = whole.at(coords)
    state = initial_state(program.weights, coords, 0, dtype).on(ops)
    optimiser = Optimiser(ops, state, model.param_specs(), Hyper(1e-3), 1)
    tools = Tools(DryMesh(mesh), ops, StepTimer(ops.Timer(), marked=False), 0)
    mesh.collect(np.zeros(1))  # ranks of a host share its memory: all at once
    took = dry_steps(tools, program, optimiser, model.input_shape, model.classes, count)
    _note(whole, coords, dtype.itemsize, took.mean(axis=0).tolist(), found)


def _note(
    whole: GlobalProgram, coords: tuple[int, ...], itemsize: int, took: list[float],
    found: _Measured,
) -> None:  # fmt: skip
    counter = Counter(whole, itemsize)
    rows = len(whole.at(coords).positions)
    found.convolving = found.layers = 0.0
    for op, seconds in zip(whole.ops, took[:-1], strict=True):
        match op:
            case Forward() | Backward():
                way = int(isinstance(op, Backward))
                work = counter.backward(op.call) if way else counter.forward(op.call)
                contracts = op.call.layer.kind == "contraction"
                amount = work.flops if contracts else work.bytes_touched
                here = float(np.broadcast_to(amount, whole.grid)[coords])
                name = f"{op.call.name} {WAYS[way]}"
                found.passes.setdefault(name, []).append((here, seconds))
                found.layers += seconds / rows
                found.convolving += seconds / rows * op.call.layer.convolves
            case Loss():
                found.start = seconds
    items = sum(counter.items(w.param.shape, w.home) for w in whole.weights if w.learns)
    held = float(np.broadcast_to(items, whole.grid)[coords])
    found.per_byte = took[-1] / max(1.0, UPDATE_PASSES * itemsize * held)


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return start and slope, neither below 0, of the line that is nearest to (work, s).

    Points count by their work, so that the line meets the largest best.
    """
    work, seconds = np.array(points).T
    if not work.any():
        return float(seconds.mean()), 0.0
    weights = work / work.sum()
    centre, middle = weights @ work, weights @ seconds
    spread = weights @ (work - centre) ** 2
    slope = weights @ ((work - centre) * (seconds - middle)) / spread if spread > 0 else 0.0
    start = middle - slope * centre
    if slope <= 0 or start < 0:
        return 0.0, float(middle / centre)
    return float(start), float(slope)
