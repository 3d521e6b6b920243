"""A trained network from a checkpoint, on any number of ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpicnn.checkpoint import Checkpoints, compare, read_meta
from mpicnn.data.augment import augmentation
from mpicnn.devices.choice import choose_device
from mpicnn.division.operations import Positions
from mpicnn.division.plan import Plan
from mpicnn.division.planfile import load_plan, parse_plan, plan_ranks, saved_plan
from mpicnn.errors import UserError
from mpicnn.job.activity import Activity
from mpicnn.job.agreement import agree, from_root
from mpicnn.job.environment import environment
from mpicnn.job.output import say
from mpicnn.models import Model, freeze
from mpicnn.ops.interface import Array
from mpicnn.precision import dtype_of
from mpicnn.run.directory import CHECKPOINTS
from mpicnn.run.distributed import DistributedModel, outline
from mpicnn.run.meta import check_meta
from mpicnn.run.network_file import file_of, load_kept
from mpicnn.settings.definitions import Settings
from mpicnn.settings.plan_groups import PlanChoice
from mpicnn.step.state import kept_by

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.settings.groups import DeviceChoice
    from mpicnn.step.state import State


@dataclass(frozen=True)
class TrainedModel:
    """Hold a trained network: its state, and what was saved with it."""

    distributed: DistributedModel
    state: State
    settings: Settings
    meta: dict[str, Any]
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the network's outputs."""
        return tuple(self.meta["classes"])

    def predict(self, images: Array, batch: int = 256) -> Array:
        """Return the probability of every class for each image: float64 (n, classes).

        `images` are uint8 (n, c, h, w), of the size of the images that the network was trained
        with, the same on all ranks; `batch` of them at a time are divided over the ranks.
        Collective. Raises UserError where their shape does not suit.
        """
        expected = tuple(self.meta["image_shape"])
        if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8:
            raise UserError(
                f"predict: images {images.dtype} {images.shape}, expected uint8 (n, "
                f"{', '.join(map(str, expected))})"
            )
        table = np.zeros((len(images), self.distributed.model.classes))
        for lo in range(0, len(images), batch):
            part = images[lo : lo + batch]
            table[lo : lo + batch] = self.probabilities(len(part), part.__getitem__)
        return table

    def probabilities(self, count: int, read: Callable[[Positions], Array]) -> Array:
        """Return what `predict` does for a batch of `count` images, of which `read` gives some.

        `count` is at least 1. A UserError that `read` raises on one rank is raised on all.
        Collective.
        """
        distributed = self.distributed
        program = distributed.program(count)
        x = self._prepared(agree(distributed.mesh.world.comm, read, program.positions))
        logits = distributed.executor.predict(program, self.state, x).astype(np.float64)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        table = np.zeros((count, distributed.model.classes))
        table[program.answers] = odds / odds.sum(axis=1, keepdims=True)
        return distributed.mesh.sum(table).wait()

    def _prepared(self, images: Array) -> Array:
        """Return images as the network takes them: cropped and normalised as in testing."""
        augment = augmentation(self.settings).for_evaluation()
        places = np.arange(len(images))
        images = augment.vary(images, 0, 0, places)
        windows = augment.windows(images.shape[1:], 0, 0, places)
        mean, std = np.array(self.meta["mean"]), np.array(self.meta["std"])
        ops, dtype = self.distributed.ops, self.distributed.dtype
        return augment.apply(ops, ops.xp.asarray(images), windows, mean, std, dtype)


def load_trained(
    comm: MPI.Intracomm,
    run: str,
    checkpoint: str,
    plan: str,
    machine: DeviceChoice,
    activity: Activity | None = None,
) -> TrainedModel:
    """Load a checkpoint file, or a checkpoint of a `run`, divided over `comm`. Collective.

    `checkpoint` says which one of a run (see `Checkpoints.find`). Without a `plan`, the run's own
    is taken where it was made for as many ranks, and division of the batch elsewhere. `activity`
    is told what the network does. Raises UserError where there is nothing valid to load.
    """
    path = Path(from_root(comm, find_checkpoint, Path(run), checkpoint))
    meta = json.loads(from_root(comm, lambda: json.dumps(read_meta(path))))
    settings = agree(comm, check_meta, meta, path)
    # a run's rounded products are not needed to use what it learnt, and not every device has them
    precision = dtype_of(settings.precision).name
    file = from_root(comm, file_of, meta, path)
    model = agree(comm, described, meta, path, settings.freeze, file)
    # Before anything is made of a size that the file does not have.
    kept = kept_by(settings.optimiser, settings.ema)
    from_root(comm, lambda: compare(path, outline(model, dtype_of(precision), kept))[0])
    device = choose_device(comm, machine, precision, environment())
    distributed = DistributedModel(
        comm,
        device,
        model,
        agree(comm, _plan, plan, meta, model, comm.size),
        precision,
        settings.seed,
        kept=kept,
        activity=activity or Activity(),
    )
    state = distributed.initial()
    distributed.load(state, Checkpoints(path.parent, keep=1), path)
    return TrainedModel(distributed, state.tested, settings, meta, path)


def described(meta: dict[str, Any], path: Path, frozen: str, file: str) -> Model:
    """Return the network that a checkpoint describes, of which a part may be `frozen` (patterns).

    `file` is the copy of a Python file that defines its layers, "" where the package has them all.
    Raises UserError where there is no such network.
    """
    if file:
        return freeze(load_kept(file, meta), frozen)
    try:
        model = Model.from_description(meta["name"], meta["input_shape"], meta["model"])
        model = freeze(model, frozen)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if model.classes != len(meta["classes"]):
        raise UserError(
            f"{path}: names {len(meta['classes'])} classes, but its network has {model.classes}"
        )
    return model


def find_checkpoint(path: Path, which: str) -> str:
    """Return the checkpoint file meant by `path`, and in a directory by `which`."""
    if os.path.isfile(path):
        if which != "auto":
            raise UserError(
                f"checkpoint {which}: {path} is a checkpoint file; give the run's directory to "
                "choose one"
            )
        return str(path)
    inner = path / CHECKPOINTS
    found = Checkpoints(inner if inner.is_dir() else path, 1, warn).find(which)
    if found is None:
        raise UserError(
            f"checkpoint {path}: nothing to load; expected a run directory or a file step-*.h5"
        )
    return str(found)


def warn(line: str) -> None:
    """Show a warning on stderr."""
    say(None, f"mpicnn: warning: {line}")


def _plan(name: str, meta: dict[str, Any], model: Model, ranks: int) -> Plan:
    if name:
        return load_plan(PlanChoice(plan=name), model, ranks)
    if plan_ranks(saved_plan(meta["plan"])) != ranks:
        return load_plan(PlanChoice(), model, ranks)
    return parse_plan(meta["plan"], "of the run", PlanChoice(), model, ranks)
