"""What every command sets up the same way: settings on all ranks, backend, network, plan, state."""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mpicnn import calibrate, ops
from mpicnn.checkpoint import Tensor
from mpicnn.compile import compile
from mpicnn.config import Settings, environment, parse
from mpicnn.errors import DeviceError, UserError
from mpicnn.execute import Executor
from mpicnn.launch import agree, from_root, same
from mpicnn.mesh import Mesh
from mpicnn.options import Options
from mpicnn.placement import region
from mpicnn.plan import Plan, Weights, check_batch
from mpicnn.planfile import load_plan
from mpicnn.program import Program
from mpicnn.rundir import CONFIG
from mpicnn.state import State, initial_state

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpicnn.config import Division, Machine
    from mpicnn.models import Model

AnyOptions = TypeVar("AnyOptions", bound=Options)

SWITCHES = {each.name for _, each in Settings.options() if isinstance(each.default, bool)}

_HELP_SHOWN = "\0"


def read_settings(comm: MPI.Intracomm, command: str, kind: type[AnyOptions]) -> AnyOptions:
    """Return the command's settings on all ranks; rank 0 alone reads them. Collective.

    Raises UserError on all ranks where they are wrong, and SystemExit(0) after `--help`.
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


def load_backend(comm: MPI.Intracomm, machine: Machine) -> tuple[ModuleType, int]:
    """Return this rank's backend and the number of threads that it was set to. Collective.

    Without a number asked for, ranks that may use the same cores divide them.
    Raises DeviceError (exit code 69) for a device that is not there.
    """

    def load() -> tuple[ModuleType, int]:
        if machine.device == "gpu":
            raise DeviceError("device gpu: no GPU backend is installed; use --device cpu")
        backend = ops.load(machine.backend)
        threads = machine.threads or share
        backend.set_threads(threads)
        return backend, threads

    share = cores_per_rank(Mesh(comm))
    return agree(comm, load)


def cores_per_rank(mesh: Mesh) -> int:
    """Return how many cores this rank has: those it may use, divided with the ranks that may too.

    Collective.
    """
    mine = {f"{socket.gethostname()}:{core}" for core in os.sched_getaffinity(0)}
    users = Counter(core for cores in mesh.texts(" ".join(mine)) for core in cores.split())
    return max(1, int(sum(Fraction(1, users[core]) for core in mine)))


def parse_grid(text: str) -> tuple[int, ...]:
    """Return the lengths of the axes that `text` ("2x4", or "" for none) names."""
    return tuple(int(n) for n in text.split("x")) if text else ()


def given_shares(text: str, grid: Sequence[int]) -> tuple[Weights, ...] | None:
    """Return the shares that `text` ("equal" or "2,1,1") gives the ranks of the last axis."""
    if text == "equal":
        return None
    outer = tuple((1.0,) * n for n in grid[:-1])
    return (*outer, tuple(float(part) for part in text.split(",")))


def open_grid(comm: MPI.Intracomm, text: str) -> Mesh:
    """Return the ranks as the grid that `text` names, or as one axis.

    Raises UserError where it does not have as many places as there are ranks.
    """
    grid = parse_grid(text) or (comm.size,)
    if np.prod(grid) != comm.size:
        raise UserError(f"grid {text} has {np.prod(grid)} places, but {comm.size} ranks run")
    return Mesh(comm, grid)


def make_plan(
    mesh: Mesh, backend: ModuleType, model: Model, division: Division, batch: int, precision: str
) -> Plan:
    """Return the plan that the settings ask for, after measuring speeds where they want them.

    Collective. Raises UserError where the plan does not fit network, ranks or batch.
    """
    comm = mesh.world.comm
    shares = _shares(mesh, backend, model, division, batch, precision)
    plan = agree(
        comm, load_plan, division.plan, model, mesh.grid, shares, division.scheme, division.sync
    )
    agree(comm, check_batch, model, plan, batch)
    return plan


def _shares(
    mesh: Mesh, backend: ModuleType, model: Model, division: Division, batch: int, precision: str
) -> tuple[Weights, ...] | None:
    if division.shares != "measured":
        return given_shares(division.shares, mesh.grid)
    found = speeds(mesh, backend, model, division.calibration, batch, precision)
    times = np.array([sum(row) for row in found.seconds]).reshape(-1, mesh.grid[-1])
    # A coordinate of the last axis is as fast as the slowest rank that has it.
    measured = calibrate.shares_of(times.max(axis=0).tolist())
    return (*((1.0,) * n for n in mesh.grid[:-1]), measured)


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
    """A network divided over a mesh by a plan: programs for any batch, state, checkpoints."""

    mesh: Mesh
    ops: ModuleType
    model: Model
    plan: Plan
    precision: str
    seed: int = 0
    bucket: int = 4 << 20
    threads: int = 1
    executor: Executor = field(init=False)

    def __post_init__(self) -> None:
        self.executor = Executor(self.mesh, self.ops, self.seed, self.bucket)
        self.program = lru_cache(maxsize=8)(self._compile)
        self.weights = agree(self.mesh.world.comm, self.program, 1).weights
        text = f"{self.model.describe()} {self.plan} {self.precision} {self.seed} {np.__version__}"
        same(self.mesh.world.comm, "network, plan or NumPy version", text.encode())

    def _compile(self, count: int) -> Program:
        return compile(self.model, self.plan, self.mesh.coords, count)

    def initial(self) -> State:
        """Return this rank's part of the state at the start of a run."""
        return initial_state(self.weights, self.mesh.coords, self.seed, self.precision)

    def tensors(self, state: State) -> dict[str, Tensor]:
        """Return the state as blocks of global arrays, for checkpoints to fill or to save."""
        found = {}
        for weight in self.weights:
            box = region(weight.param.shape, weight.home, self.mesh.coords)
            block = tuple(slice(lo, hi) for lo, hi in box)
            parts = {"params": state.params, "velocity": state.velocity}
            if weight.buffer:
                parts = {"buffers": state.buffers}
            for section, arrays in parts.items():
                found[f"{section}/{weight.name}"] = Tensor(
                    weight.param.shape, np.dtype(self.precision), block, arrays[weight.name]
                )
        return found
