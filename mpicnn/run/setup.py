"""What every command sets up: settings on all ranks, measured speeds, the plan."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mpicnn.comm.mesh import Mesh
from mpicnn.comm.pending import ProgressMode, threads_allowed
from mpicnn.data.file import Dataset
from mpicnn.data.layout import class_counts
from mpicnn.errors import UserError
from mpicnn.job.agreement import from_root
from mpicnn.job.environment import environment
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.run.directory import arguments_of
from mpicnn.settings.definitions import Settings, parse, settings_of, split_command
from mpicnn.settings.option import Options
from mpicnn.step.optimiser import Hyper
from mpicnn.step.rates import RateSchedule, scale

if TYPE_CHECKING:
    from mpi4py import MPI


AnyOptions = TypeVar("AnyOptions", bound=Options)

CONSOLE = "mpicnn"
"""The console script; a command that is started so shows itself so."""

SWITCHES = {each.name for _, each in Settings.options() if isinstance(each.default, bool)}

_HELP_SHOWN = "\0"


def read_settings(comm: MPI.Intracomm, kind: type[AnyOptions], argv: Sequence[str]) -> AnyOptions:
    """Return a command's settings on all ranks; rank 0 alone reads them. Collective.

    `argv` begins with the command's words. Raises UserError on all ranks where they are wrong, and
    SystemExit(0) after `--help`, `--version` and `--recipes`.
    """
    _, settings = read_command(comm, argv)
    assert isinstance(settings, kind)
    return settings


def read_command(comm: MPI.Intracomm, argv: Sequence[str]) -> tuple[str, Options]:
    """Return the command that `argv` begins with, and its settings; see `read_settings`."""
    command, arguments = split_command(argv)

    def read() -> str:
        try:
            return _parse(arguments, command).to_json()
        except SystemExit:
            return _HELP_SHOWN

    text = from_root(comm, read)
    if text == _HELP_SHOWN:
        raise SystemExit(0)
    return command, settings_of(command).from_json(text)


def _parse(argv: list[str], command: str) -> Options:
    """Read the settings; a resumed run starts from its own `config.toml`."""
    prog = f"{CONSOLE} {command}".rstrip() if sys.argv[0] == CONSOLE else ""
    settings = parse(argv, command, environment(), prog)
    if isinstance(settings, Settings) and settings.resume and not _names_file(argv):
        before = arguments_of(Path(settings.run_dir))
        return parse([*before, *argv], command, environment(), prog)
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


def progress_of(comm: MPI.Intracomm, thread: str) -> ProgressMode:
    """Return who lets MPI make progress, for a `thread` that is "auto", "on" or "off". Collective.

    Over a network a thread pays; in shared memory ranks copy by themselves, so that there is
    nothing to travel beside the computation. Raises UserError where MPI does not allow a thread.
    """
    able = threads_allowed()
    if thread == "on" and not able:
        raise UserError("progress-thread on: this MPI was started without threads; use off")
    hosts = set(Mesh(comm).texts(socket.gethostname()))
    return "thread" if thread == "on" or (thread == "auto" and able and len(hosts) > 1) else "poll"


def training_loss(settings: Settings, data: Dataset) -> SoftmaxCrossEntropy:
    """Return the loss that the settings ask for. Raises UserError where `data` has other classes.

    Balanced weights are n / (classes x images of the class), for n images (King and Zeng 2001, as
    scikit-learn's "balanced").
    """
    classes = len(data.classes)
    if settings.class_weights == "balanced":
        counts = class_counts(data.split("train").labels, classes)
        if not counts.all():
            raise UserError(
                f"class-weights balanced: no training image is of class "
                f"{data.classes[int(counts.argmin())]}; give a number per class"
            )
        weights = tuple((counts.sum() / (classes * counts)).tolist())
    else:
        weights = tuple(map(float, filter(None, settings.class_weights.split(","))))
    if weights and len(weights) != classes:
        raise UserError(
            f"class-weights: {len(weights)} numbers, but {data.path} has {classes} classes; give "
            "one for each, in their order"
        )
    return SoftmaxCrossEntropy(settings.label_smoothing, weights)


def hyper(settings: Settings, steps_per_epoch: int) -> Hyper:
    """Return rate, decay and schedule, scaled to the batch as the settings say."""
    rate, decay = scale(
        settings.rate, settings.decay, settings.batch, settings.reference_batch, settings.scaling
    )
    schedule = RateSchedule(
        settings.schedule, settings.drops, settings.drop_factor, settings.warmup * steps_per_epoch,
        settings.power,
    )  # fmt: skip
    return Hyper(
        rate, settings.momentum, decay, settings.bias_rate, schedule, settings.optimiser,
        settings.nesterov, settings.beta1, settings.beta2, settings.eps, settings.trust,
        settings.clip, settings.ema,
    )  # fmt: skip
