"""The settings of every command: one description gives the file, the flags and `--help`.

The settings are plain frozen dataclasses whose fields carry their description and bounds. Only
`parse`, on one rank, makes a pydantic model of them (`mpicnn.settings.parser`); the other ranks
read what it found by `from_json` and are spared the import. Flags override the file, the file the
defaults.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Literal, overload

from mpicnn.errors import UserError
from mpicnn.job.environment import Environ
from mpicnn.precision import Name as PrecisionName
from mpicnn.settings.choices import FcUpdate, Order, RateScheduleName, Scaling, Scheme, Sync
from mpicnn.settings.option import (
    Options,
    devices_text,
    extents,
    option,
    rising,
    shares_text,
    stages_text,
)
from mpicnn.settings.option import differences as differences


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Options):
    """Say which network."""

    heading = "model and data"
    fixed = True
    model: str = option("default", "network: a name, FILE.py or FILE.toml", "MODEL")


@dataclass(frozen=True, kw_only=True)
class DataChoice(Options):
    """Say which examples."""

    heading = "model and data"
    fixed = True
    data: str = option("embedded", "FILE.h5, or the small data set in the package", "DATA")


@dataclass(frozen=True, kw_only=True)
class RunDirectory(Options):
    """Say where a run is kept and whether it goes on."""

    heading = "run directory"
    run_dir: str = option("", "what the run leaves", "DIR", unset="a new runs/MODEL-N")
    resume: bool = option(False, "go on from the last checkpoint in run-dir")
    checkpoint_every: float = option(1.0, "epochs between checkpoints; 0: one at the end", ge=0)
    keep: int = option(2, "number of checkpoints kept", ge=1)


@dataclass(frozen=True, kw_only=True)
class Length(Options):
    """Say how long to train: more of it is what a resumed run may ask for."""

    heading = "training"
    epochs: float = option(8.0, "passes over the training data; may be a fraction", gt=0)


@dataclass(frozen=True, kw_only=True)
class Batch(Options):
    """Say how many examples make a step."""

    heading = "training"
    fixed = True
    batch: int = option(128, "examples in one step, over all ranks", ge=1)


@dataclass(frozen=True, kw_only=True)
class Precision(Options):
    """Say which numbers to compute with."""

    heading = "training"
    fixed = True
    precision: PrecisionName = option(
        "float32", "numbers to compute with (tf32, bf16: products only)"
    )


@dataclass(frozen=True, kw_only=True)
class OptimiserChoice(Options):
    """Say how weights start and change."""

    heading = "training"
    fixed = True
    rate: float = option(0.01, "learning rate", gt=0)
    bias_rate: float = option(1.0, "learning rate of biases, in multiples of rate", ge=0)
    momentum: float = option(0.9, "part of the last update that is repeated", ge=0, lt=1)
    decay: float = option(0.0005, "weight decay; biases have none", ge=0)
    schedule: RateScheduleName = option("constant", "how the rate falls")
    drops: tuple[float, ...] = option(
        (0.5, 0.75), "when, as fractions of the run (steps)", "X,X", check=rising
    )
    drop_factor: float = option(0.1, "multiplies the rate at each drop (steps)", gt=0, lt=1)
    warmup: float = option(0.0, "epochs over which the rate first rises", ge=0)
    fc_rate: float = option(1.0, "learning rate of FC layers, in multiples of rate", ge=0)
    fc_update: FcUpdate = option("step", "when FC weights change, every step or round (owt b, c)")
    scaling: Scaling = option("none", "how rate follows batch / reference-batch")
    reference_batch: int = option(128, "batch that rate and decay were chosen for", ge=1)
    seed: int = option(1, "of weights, shuffles, crops, flips, dropout", ge=0, le=2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Options):
    """Say how training images vary from epoch to epoch."""

    heading = "augmentation of training images"
    fixed = True
    crop: int = option(0, "height and width of random crops, pixels", ge=0, unset="off")
    pad: int = option(0, "zeros around images before the crop, pixels", ge=0)
    flip: bool = option(False, "mirror half of the images left to right")


@dataclass(frozen=True, kw_only=True)
class Evaluation(Options):
    """Say how examples outside training are run."""

    heading = "evaluation"
    eval_batch: int = option(256, "examples at once, over all ranks", ge=1)


@dataclass(frozen=True, kw_only=True)
class PlanChoice(Options):
    """Say who computes what."""

    heading = "division of the work over ranks"
    plan: str = option(
        "data", "FILE.toml, data, owt, filter, fc-output, fc-input or master-worker", "PLAN"
    )
    shares: str = option(
        "equal", "work per rank: equal, measured or like 2,1,1", "SHARES", check=shares_text
    )
    calibration: str = option("", "measured speeds: read, or written if new", "FILE", unset="none")
    grid: str = option(
        "", "ranks as data x model axes, like 2x4", "DxM", unset="one axis", check=extents("2x4")
    )
    stages: str = option(
        "1", "pipeline stages: how many, or the layers they begin at", "N|X,X", check=stages_text
    )
    micro_batches: int = option(
        0, "parts of the batch", "N", ge=0, unset="1; 4 per stage of a pipeline"
    )
    order: Order = option("1f1b", "of micro-batches in a stage")
    scheme: Scheme = option("a", "how FC layers get the batch (owt)")
    sync: Sync = option("allreduce", "how weights are kept equal")
    bucket_mb: float = option(1.0, "gradients joined in one message, MB", gt=0)
    progress_thread: Literal["auto", "on", "off"] = option(
        "auto", "a thread that keeps messages moving (auto: over several hosts)"
    )


@dataclass(frozen=True, kw_only=True)
class DeviceChoice(Options):
    """Say what each rank computes on."""

    heading = "machine"
    device: str = option(
        "auto", "auto, cpu, gpu, gpu:N, or one for each rank of a host", "DEVICE,…",
        check=devices_text,
    )  # fmt: skip
    backend: Literal["auto", "numpy", "native"] = option("auto", "kernels on the CPU")
    threads: int = option(0, "threads per rank", ge=0, unset="cores / ranks on the host")
    pin: bool = option(False, "divide the cores that ranks of a host share between them")
    convolution: Literal["auto", "direct"] = option(
        "auto", "the quickest method or none with transforms (numpy has one)"
    )
    transport: Literal["auto", "host", "mpi", "nccl"] = option(
        "auto", "how GPU memory travels: by host memory, by an MPI that reads it, by NCCL"
    )


@dataclass(frozen=True, kw_only=True)
class Display(Options):
    """Say what is shown and measured meanwhile."""

    heading = "what is shown"
    evaluate_every: float = option(1.0, "epochs between tests; 0: at the end only", ge=0)
    log_every: int = option(0, "steps between log lines", ge=0, unset="ten an epoch")
    trace: str = option("", "timeline of ten steps, for Perfetto", "FILE", unset="none")
    progress: Literal["auto", "bar", "lines", "off"] = option("auto", "progress of the run")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Options):
    """Say which trained network."""

    heading = "what to run"
    checkpoint: str = option(None, "run directory or checkpoint file", "RUN", positional=True)


@dataclass(frozen=True, kw_only=True)
class Evaluated(Options):
    """Say what a trained network is evaluated on."""

    heading = "what to run"
    data: str = option("", "data set", "FILE.h5", unset="that of the run")
    plan: str = option("", "division over ranks, as in training", "PLAN", unset="that of the run")


@dataclass(frozen=True, kw_only=True)
class Predicted(Options):
    """Say which images to name."""

    heading = "what to run"
    images: tuple[str, ...] = option(None, "image files", "IMAGE", positional=True)
    top: int = option(5, "classes named per image", ge=1)


@dataclass(frozen=True, kw_only=True)
class Planned(Options):
    """Say what to plan for, without data and without ranks if need be."""

    heading = "what to plan for"
    ranks: int = option(0, "number of ranks", ge=0, unset="those running")
    input: str = option(
        "", "shape of one example", "CxHxW", unset="that of data", check=extents("3x224x224")
    )
    classes: int = option(0, "outputs of the network", ge=0, unset="those of data")


@dataclass(frozen=True, kw_only=True)
class Settings(
    ModelChoice, DataChoice, RunDirectory, Length, Batch, OptimiserChoice, Precision, Augmentation,
    Evaluation, PlanChoice, DeviceChoice, Display,
):  # fmt: skip
    """Hold the settings of a training run. Raises UserError where two do not fit together."""

    purpose = "Train a convolutional network, over as many MPI ranks as are started."
    reads_file = True

    def __post_init__(self) -> None:
        if self.pad and not self.crop:
            raise UserError("pad needs crop: give crop, the size to cut from the padded images")
        if self.schedule == "steps" and not self.drops:
            raise UserError("schedule steps needs drops: fractions of the run, like 0.5,0.75")
        if self.resume and not self.run_dir:
            raise UserError("resume needs run-dir: the directory of the run to go on with")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Checkpoint, Evaluated, Evaluation, DeviceChoice):
    """Hold the settings of an evaluation."""

    purpose = "Evaluate a trained network on the test examples of a data set."


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Checkpoint, Predicted, DeviceChoice):
    """Hold the settings of a prediction."""

    purpose = "Name what a trained network sees in images."


@dataclass(frozen=True, kw_only=True)
class PlanSettings(ModelChoice, DataChoice, Planned, Batch, Precision, PlanChoice, DeviceChoice):
    """Hold the settings of planning. It takes a training run's file and skips the rest of it."""

    purpose = "Show how a plan divides a network, and what it costs."
    reads_file = True


@overload
def parse(argv: list[str], command: Literal["train"], environ: Environ) -> Settings: ...
@overload
def parse(argv: list[str], command: Literal["evaluate"], environ: Environ) -> EvaluateSettings: ...
@overload
def parse(argv: list[str], command: Literal["predict"], environ: Environ) -> PredictSettings: ...
@overload
def parse(argv: list[str], command: Literal["plan"], environ: Environ) -> PlanSettings: ...
def parse(argv: list[str], command: str, environ: Environ) -> Options:
    """Return what `argv` (without the program's name) and the file named there ask for.

    `command` is the module of `python -m mpicnn.COMMAND`; COLUMNS in `environ` is the width of
    `--help`. Raises UserError for the first thing that is wrong in flags or file, and
    SystemExit(0) after `--help`, `--version` and `--recipes`. Call it on one rank: it imports
    pydantic.
    """
    from mpicnn.settings.parser import read

    kinds: dict[str, type[Options]] = {
        "train": Settings,
        "evaluate": EvaluateSettings,
        "predict": PredictSettings,
        "plan": PlanSettings,
    }
    skipped = {each.name for _, each in Settings.options()} if command == "plan" else set()
    columns = environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() else shutil.get_terminal_size().columns
    return read(argv, command, kinds[command], skipped, min(width, 100) - 2)
