"""What is timed: a named network on one batch of synthetic images, as mpicnn trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn import models
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.choice import Device
from mpicnn.division.plan import Plan
from mpicnn.errors import UserError
from mpicnn.models import Model
from mpicnn.ops.interface import Backend
from mpicnn.run.distributed import DistributedModel
from mpicnn.step.initial import initial_rows
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.timing import CATEGORIES, sampled

Array = NDArray[Any]

SEED = 0
STEPS = 1_000_000  # more than any bench does: the rate is constant
# A rate at which no network diverges: the losses of both sides then differ by roundings alone.
HYPER = Hyper(rate=1e-4, momentum=0.9, decay=5e-4)


@dataclass(frozen=True)
class Task:
    """One network and one batch: images float32 (n, c, h, w), labels int64 (n,)."""

    model: Model
    x: Array
    labels: NDArray[np.int64]

    @classmethod
    def draw(cls, name: str, batch: int) -> Task:
        """Return the named network with random images of its natural size, random labels."""
        shape, classes = _natural(name)
        model = models.load(name, shape, classes)
        generator = np.random.default_rng(SEED)
        x = generator.standard_normal((batch, *shape), np.float32)
        return cls(model, x, generator.integers(0, classes, batch))

    def weights(self) -> dict[str, Array]:
        """Return every parameter and buffer as mpicnn starts with them, whole."""
        specs = self.model.param_specs() | self.model.buffer_specs()
        return {
            name: initial_rows(spec, SEED, name, (0, spec.shape[0]), np.float32)
            for name, spec in specs.items()
        }

    def without_dropout(self) -> Task:
        """Return the task with every dropout rate 0: the masks of two libraries differ."""
        entries = [
            entry | {"rate": 0.0} if entry["type"] == "dropout" else entry
            for entry in self.model.describe()
        ]
        model = Model.from_description(self.model.name, self.model.input_shape, entries)
        return Task(model, self.x, self.labels)


def _natural(name: str) -> tuple[tuple[int, int, int], int]:
    """Return image shape and number of classes of the data a network was made for."""
    for start, shape, classes in (
        ("default", (1, 28, 28), 10),
        ("lenet5", (1, 28, 28), 10),
        ("cuda-convnet", (3, 32, 32), 10),
        ("marques", (3, 32, 32), 10),
        ("vgg", (3, 64, 64), 10),
        ("alexnet-cifar", (3, 32, 32), 10),
        ("resnet20", (3, 32, 32), 10),
        ("resnet56", (3, 32, 32), 10),
        ("", (3, 224, 224), 1000),
    ):
        if name in models.NAMES and name.startswith(start):
            return shape, classes
    raise UserError(f"models: unknown network {name!r}, expected some of {', '.join(models.NAMES)}")


class Ours:
    """Train the task's network with mpicnn, all ranks of the mesh together.

    `put` brings this rank's images to where the backend has them in training; `spent` are the
    seconds of the step before the last.
    """

    def __init__(
        self,
        mesh: Mesh,
        backend: Backend,
        task: Task,
        plan: Plan,
        put: Callable[[Array], Any] = np.asarray,
    ) -> None:
        self.distributed = DistributedModel(
            mesh.world.comm, Device(backend), task.model, plan, "float32", SEED
        )
        self.state = self.distributed.initial()
        self.program = self.distributed.program(len(task.labels))
        self.x, self.labels = put(task.x[self.program.positions]), task.labels
        specs = task.model.param_specs()
        self.optimiser = Optimiser(backend, self.state, specs, HYPER, STEPS)
        self.done = 0
        self.spent = dict.fromkeys(CATEGORIES, 0.0)

    def step(self) -> float:
        """Do one training step; return the mean loss before it.

        As in training, the times of the step before, if taken, are read behind it, and not kept.
        """
        executor = self.distributed.executor
        before = executor.timer
        executor.time_step(executor.device_timer.free or sampled(self.done))
        sums = executor.step(self.program, self.optimiser, self.x, self.labels, self.done)
        self.spent = before.by_category
        self.done += 1
        return float(sums[0]) / len(self.labels)
