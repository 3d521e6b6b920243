"""What every command sets up the same way: settings on all ranks, backend, network, plan, state."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mpicnn import calibrate
from mpicnn.agreement import agree, from_root, same
from mpicnn.checkpoint import Checkpoints, Tensor
from mpicnn.compile import compile
from mpicnn.config import Settings, parse
from mpicnn.devices import Device
from mpicnn.environment import environment
from mpicnn.errors import UserError
from mpicnn.execute import Executor
from mpicnn.mesh import Mesh
from mpicnn.options import Options
from mpicnn.placement import box_shape, region
from mpicnn.plan import Plan
from mpicnn.planfile import load_plan
from mpicnn.precision import dtype_of
from mpicnn.program import Program
from mpicnn.resolve import check_batch
from mpicnn.rundir import CONFIG
from mpicnn.state import State, initial_state
from mpicnn.underway import Progress, threads_allowed

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.config import Division
    from mpicnn.models import Model

AnyOptions = TypeVar("AnyOptions", bound=Options)

SWITCHES = {each.name for _, each in Settings.options() if isinstance(each.default, bool)}

_HELP_SHOWN = "\0"


def read_settings(comm: MPI.Intracomm, command: str, kind: type[AnyOptions]) -> AnyOptions:
    """Return the command's settings on all ranks; rank 0 alone reads them. Collective.

    Raises UserError on all ranks where they are wrong, and SystemExit(0) after `--help`,
    `--version` and `--recipes`.
    """

    def read() -> str:
        try:
            return _parse(sys.argv[1:], command).to_json()
        except SystemExit:
            return _HELP_SHOWN

    text = from_root(comm, read)
    if text == _HELP_SHOWN:
        raise SystemExit(0)
    return kind.from_json(text)


def _parse(argv: list[str], command: str) -> Options:
    """Read the settings; a run that is resumed starts from what it was run with before."""
    settings: Options = parse(argv, command, environment())  # type: ignore[call-overload]
    if isinstance(settings, Settings) and settings.resume and not _names_file(argv):
        before = Path(settings.run_dir) / CONFIG
        if before.is_file():
            return parse([str(before), *argv], command, environment())  # type: ignore[call-overload]
    return settings


def _names_file(argv: list[str]) -> bool:
    """Say whether the arguments hold a file besides options and their values."""
    value_follows = False
    for argument in argv:
        if value_follows:
            value_follows = False
        elif argument.startswith("--"):
            name = argument.removeprefix("--").removeprefix("no-").replace("-", "_")
            value_follows = "=" not in argument and name not in SWITCHES
        else:
            return True
    return False


def progress_of(comm: MPI.Intracomm, thread: str) -> Progress:
    """Return who lets MPI make progress, for a `thread` that is "auto", "on" or "off". Collective.

    Over a network a thread pays; in shared memory ranks copy by themselves, so that there is
    nothing to travel beside the computation. Raises UserError where MPI does not allow a thread.
    """
    able = threads_allowed()
    if thread == "on" and not able:
        raise UserError("progress-thread on: this MPI was started without threads; use off")
    hosts = set(Mesh(comm).texts(socket.gethostname()))
    return "thread" if thread == "on" or (thread == "auto" and able and len(hosts) > 1) else "poll"


def make_plan(
    comm: MPI.Intracomm,
    backend: ModuleType,
    model: Model,
    division: Division,
    batch: int,
    precision: str,
) -> Plan:
    """Return the plan that the settings ask for, after measuring speeds where they want them.

    Collective. Raises UserError where the plan does not fit network, ranks or batch.
    """
    equal = replace(division, shares="equal") if division.shares == "measured" else division
    plan = agree(comm, load_plan, equal, model, comm.size)
    if division.shares == "measured":
        found = speeds(Mesh(comm), backend, model, division.calibration, batch, precision)
        times = np.array([sum(row) for row in found.seconds]).reshape(-1, plan.grid[-1])
        # A coordinate of the last axis is as fast as the slowest rank that has it.
        measured = calibrate.shares_of(times.max(axis=0).tolist())
        plan = agree(comm, load_plan, equal, model, comm.size, measured)
    agree(comm, check_batch, model, plan, batch)
    return plan


def speeds(
    mesh: Mesh, backend: ModuleType, model: Model, file: str, batch: int, precision: str
) -> calibrate.Calibration:
    """Return the ranks' measured speeds: from `file` where it exists, else measured now and saved.

    Collective. Raises UserError where the file is of another network or other ranks.
    """
    comm = mesh.world.comm
    names = mesh.texts(backend.NAME)

    text = from_root(comm, calibrate.kept, file)
    if text:
        found = agree(comm, calibrate.Calibration.from_json, text, file)
        agree(comm, calibrate.check_fits, found, file, model, names, precision)
        return found
    found = calibrate.measure(mesh, backend, model, precision, batch)
    from_root(comm, calibrate.save, found, file)
    return found


@dataclass
class Session:
    """A network divided over a job's ranks by a plan: programs for any batch, state, checkpoints.

    Collective, as it makes the mesh.
    """

    comm: MPI.Intracomm
    device: Device
    model: Model
    plan: Plan
    precision: str
    seed: int = 0
    bucket: int = 1 << 20
    progress: Progress = "poll"
    ops: ModuleType = field(init=False)
    mesh: Mesh = field(init=False)
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        self.ops = self.device.ops
        self.mesh = Mesh(
            self.comm, self.plan.grid, self.plan.depth, self.progress, self.device.wires
        )
        self.executor = Executor(self.mesh, self.ops, self.seed, self.bucket)
        self.program = lru_cache(maxsize=8)(self._compile)
        self.weights = agree(self.mesh.world.comm, self.program, 1).weights
        text = f"{self.model.describe()} {self.plan} {self.precision} {self.seed} {np.__version__}"
        same(self.mesh.world.comm, "network, plan or NumPy version", text.encode())

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """Return the dtype of parameters and activations."""
        return dtype_of(self.precision)

    def _compile(self, count: int) -> Program:
        return compile(self.model, self.plan, self.mesh.coords, count, self.mesh.stage)

    def initial(self) -> State:
        """Return this rank's part of the state at the start of a run."""
        state = initial_state(self.weights, self.mesh.coords, self.seed, self.dtype)
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

    def tensors(self, state: State) -> dict[str, Tensor]:
        """Return the state as blocks of global arrays in host memory, for checkpoints.

        Of what lies in other stages the block is empty.
        """
        homes = {weight.name: weight.home for weight in self.weights}
        kinds = (
            ("params", self.model.param_specs(), state.params),
            ("velocity", self.model.param_specs(), state.velocity),
            ("buffers", self.model.buffer_specs(), state.buffers),
        )
        found = {}
        for section, specs, arrays in kinds:
            for name, spec in specs.items():
                box = ((0, 0),) * len(spec.shape)
                if name in homes:
                    box = region(spec.shape, homes[name], self.mesh.coords)
                array = np.empty(box_shape(box), self.dtype)
                if name in arrays:
                    array = self.ops.fetch(arrays[name])()
                block = tuple(slice(lo, hi) for lo, hi in box)
                found[f"{section}/{name}"] = Tensor(spec.shape, self.dtype, block, array)
        return found
