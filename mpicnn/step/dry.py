"""Time one rank's own work in a step, operation by operation, while no message travels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from mpicnn.comm.dry import DryMesh
from mpicnn.division.operations import Operation
from mpicnn.division.program import Program
from mpicnn.layers.base import Shape
from mpicnn.step.interpreter import Batch, Interpreter, Tools
from mpicnn.step.optimiser import Optimiser
from mpicnn.step.state import Arrays

WARM, TIMED = 1, 3
"""Steps before times are taken, and those that are timed."""


class _Timed(Interpreter):
    """Carry out operations, and note how long each took."""

    def run(self, ops: Iterable[Operation]) -> None:
        assert isinstance(self.mesh, DryMesh)
        self.took: list[float] = []
        for op in ops:
            spent, since = self.mesh.spent, perf_counter()
            super().run((op,))
            self.ops.synchronize()
            self.took.append(perf_counter() - since - (self.mesh.spent - spent))


def dry_step(
    tools: Tools, program: Program, optimiser: Optimiser, batch: Batch
) -> NDArray[np.float64]:
    """Return the seconds of every operation of a step, and of the update behind it: (ops + 1,).

    `tools.mesh` is a `DryMesh`; the optimiser's state is changed, and worth nothing afterwards.
    Layers that are timed alone in a loop seem 17 to 30 % quicker than here, since their arrays are
    still in the caches.
    """

    def learn(grads: Arrays) -> None:
        optimiser.apply(grads, batch.step, lambda values: values)

    run = _Timed(tools, program, optimiser.state, batch, learn)
    run.run(program.ops)
    grads = {name: run.values[slot] for name, slot in program.grads.items()}
    since = perf_counter()
    learn({name: g for name, g in grads.items() if g is not None})
    optimiser.average()
    tools.ops.synchronize()
    return np.array([*run.took, perf_counter() - since])


def dry_steps(
    tools: Tools,
    program: Program,
    optimiser: Optimiser,
    shape: Shape,
    classes: int,
    count: int,
) -> NDArray[np.float64]:
    """Return the seconds of every operation in `TIMED` steps on random images: (steps, ops + 1).

    `shape` is that of an image, `count` the examples of a batch. See `dry_step`.
    """
    ops, rng = tools.ops, np.random.default_rng(0)
    optimiser = replace(optimiser, steps=max(optimiser.steps, WARM + TIMED))
    dtype = next(iter(optimiser.state.params.values())).dtype
    images = rng.standard_normal((program.positions.size, *shape))
    x = ops.upload(images.astype(dtype))
    labels = rng.integers(0, classes, count)
    found = [
        dry_step(tools, program, optimiser, Batch(x, labels, step, train=True))
        for step in range(WARM + TIMED)
    ]
    return np.array(found[WARM:])
