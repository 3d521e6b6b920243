"""A network divided over the ranks of a job: programs, state and checkpoints of one plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpicnn.checkpoint import Checkpoints, Outline, Tensor, fill
from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import ProgressMode
from mpicnn.devices.choice import Device
from mpicnn.division.compile import Options, compile, compile_all
from mpicnn.division.placement import box_shape, region
from mpicnn.division.plan import Plan
from mpicnn.division.program import Program
from mpicnn.division.verify import check
from mpicnn.job.activity import Activity
from mpicnn.job.agreement import agree, from_root, same
from mpicnn.layers.loss import PLAIN, SoftmaxCrossEntropy
from mpicnn.ops.interface import Backend
from mpicnn.precision import dtype_of
from mpicnn.step.executor import Executor
from mpicnn.step.state import KEPT, State, initial_state

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.models import Model


@dataclass
class DistributedModel:
    """Divide a network over a job's ranks by a plan: programs for any batch, state, checkpoints.

    `kept` are the sections of the state beside parameters and buffers, `loss` what training
    lowers, `why` says what was found out of the plan. Collective, as it makes the mesh.
    """

    comm: MPI.Intracomm
    device: Device
    model: Model
    plan: Plan
    precision: str
    seed: int = 0
    bucket: int = 1 << 20
    by_round: bool = False
    progress: ProgressMode = "poll"
    kept: tuple[str, ...] = KEPT["sgd"]
    loss: SoftmaxCrossEntropy = PLAIN
    activity: Activity = field(default_factory=Activity)
    why: str = ""
    ops: Backend = field(init=False)
    mesh: Mesh = field(init=False)
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        self.ops = self.device.ops
        self.mesh = Mesh(
            self.comm, self.plan.grid, self.plan.depth, self.progress, self.device.wires
        )
        self.executor = Executor(self.mesh, self.ops, self.seed, self.activity, self.loss)
        self.program = lru_cache(maxsize=8)(self._compile)
        self.weights = agree(self.mesh.world.comm, self.program, 1).weights
        network = f"{self.model.describe()} {sorted(self.model.frozen)}"
        text = f"{network} {self.plan} {self.precision} {self.seed} {np.__version__}"
        same(self.mesh.world.comm, "network, plan or NumPy version", text.encode())

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Return the dtype of parameters and activations."""
        return dtype_of(self.precision)

    @property
    def options(self) -> Options:
        """Return how gradients come home."""
        return Options(max(1, self.bucket // self.dtype.itemsize), self.by_round)

    def _compile(self, count: int) -> Program:
        whole = compile(self.model, self.plan, count, self.mesh.stage, self.options)
        return whole.at(self.mesh.coords)

    def verify(self, counts: Iterable[int]) -> None:
        """Prove that the programs of all ranks fit, for batches of so many examples. Collective.

        Raises BrokenProgramError where they do not, which is a defect of the package.
        """

        def prove() -> None:
            for count in counts:
                check(compile_all(self.model, self.plan, count, self.options))

        from_root(self.mesh.world.comm, prove)

    def initial(self) -> State:
        """Return this rank's part of the state at the start of a run."""
        coords = self.mesh.coords
        state = initial_state(self.weights, coords, self.seed, self.dtype, self.kept)
        return state.on(self.ops)

    def load(
        self, state: State, checkpoints: Checkpoints, path: Path | None = None
    ) -> dict[str, Any]:
        """Fill the state from the newest valid checkpoint, or `path`; return its meta data.

        Collective. Raises UserError on all ranks where there is none that fits.
        """
        tensors = self.tensors(state)
        meta = checkpoints.load(self.mesh.world.comm, tensors, path)
        for section, part in vars(state).items():
            for name, array in part.items():
                array[...] = self.ops.upload(tensors[f"{section}/{name}"].array)
        return meta

    def take(self, state: State, path: Path, digest: str, sources: Mapping[str, str]) -> None:
        """Fill parameters and buffers, by name, with the arrays `sources` of another checkpoint.

        The running mean begins with them too. They have the shapes of those here, of any type of
        number. Collective. Raises UserError on all ranks where the file has not this digest.
        """
        tensors = self.tensors(state)
        buffers = self.model.buffer_specs()
        found = {
            source: tensors[f"{'buffers' if name in buffers else 'params'}/{name}"]
            for name, source in sources.items()
        }
        agree(self.mesh.world.comm, fill, path, digest, found)
        for name, source in sources.items():
            for part in (state.params, state.buffers, state.ema):
                if name in part:
                    part[name][...] = self.ops.upload(found[source].array)

    def tensors(self, state: State) -> dict[str, Tensor]:
        """Return the state as blocks of global arrays in host memory, for checkpoints.

        Of what lies in other stages the block is empty.
        """
        homes = {weight.name: weight.home for weight in self.weights}
        found = {}
        for full, (shape, dtype) in outline(self.model, self.dtype, self.kept).items():
            section, _, name = full.partition("/")
            arrays = vars(state)[section]
            box = region(shape, homes[name], self.mesh.coords) if name in homes else None
            box = box or ((0, 0),) * len(shape)
            array = (
                self.ops.fetch(arrays[name])()
                if name in arrays
                else np.empty(box_shape(box), dtype)
            )
            block = tuple(slice(lo, hi) for lo, hi in box)
            found[full] = Tensor(shape, dtype, block, array)
        return found


def outline(model: Model, dtype: np.dtype[Any], kept: Sequence[str]) -> Outline:
    """Return shape and type of every array in a checkpoint of a network, by section and name.

    `kept` are the sections of the optimiser's state.
    """
    params, buffers = model.param_specs(), model.buffer_specs()
    learnt = model.learnt(params)
    sections = {"params": params, **dict.fromkeys(kept, learnt), "buffers": buffers}
    if "ema" in sections:
        sections["ema"] = learnt | model.learnt(buffers)
    return {
        f"{section}/{name}": (spec.shape, dtype)
        for section, specs in sections.items()
        for name, spec in specs.items()
    }
