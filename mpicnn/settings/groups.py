"""The settings of training in groups: what they are, in which bounds, how a command line says them.

A command's settings join some of these groups (`mpicnn.settings.definitions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mpicnn.precision import Name as PrecisionName
from mpicnn.settings.checks import (
    devices_text,
    fractions,
    path,
    patterns_text,
    ratios,
)
from mpicnn.settings.option import Options, group, option


@group
class ModelChoice(Options):
    """Say which network."""

    heading = "model and data"
    model: str = option(
        "default", "network: a name, FILE.py or FILE.toml", "MODEL", check=path,
        names_file=lambda value: value.endswith((".py", ".toml")),
    )  # fmt: skip


@group
class DataChoice(Options):
    """Say which examples."""

    heading = "model and data"
    data: str = option(
        "embedded", "image file FILE.h5, or embedded: the small set in the package", "DATA",
        check=path, names_file=lambda value: value not in ("", "embedded"),
    )  # fmt: skip


@group
class Start(Options):
    """Say which weights to start with."""

    heading = "model and data"
    fixed = True
    init: str = option(
        "", "start with the weights of an earlier run (its best checkpoint, else its newest), or "
        "of a checkpoint file", "RUN", unset="fresh weights", check=path, names_file=bool,
    )  # fmt: skip


@group
class Frozen(Options):
    """Say which weights do not change."""

    heading = "model and data"
    fixed = True
    freeze: str = option(
        "", "layers that do not learn: names or patterns of names, like conv*,bn1", "PATTERN,…",
        unset="none", check=patterns_text,
    )  # fmt: skip


@group
class RunDirectory(Options):
    """Say where a run is kept and whether it goes on."""

    heading = "run directory"
    run_dir: str = option(
        "",
        "where checkpoints, metrics and settings are kept",
        "DIR",
        unset="a new runs/MODEL-N",
        check=path,
        names_file=bool,
    )
    resume: bool = option(False, "continue from the last checkpoint in run-dir")
    checkpoint_every: float = option(
        1.0, "epochs between checkpoints; 0: one at the end only", ge=0
    )
    keep: int = option(2, "how many of the latest checkpoints are kept", ge=1)


@group
class Length(Options):
    """Say how long to train: more of it is what a resumed run may ask for."""

    heading = "training"
    epochs: float = option(8.0, "passes over the training data; may be a fraction", gt=0)


@group
class Choosing(Options):
    """Say which state of a run is kept as the best, and when it gets no better."""

    heading = "choosing"
    best: Literal["auto", "loss", "top1", "top5", "off"] = option(
        "auto", "metric of the tests by which the best checkpoint is kept; auto: top1 if the data "
        "have images for validation or patience is given, else off",
    )  # fmt: skip
    patience: int = option(
        0, "tests without a better one until the run ends", ge=0, unset="no limit"
    )


@group
class Batch(Options):
    """Say how many examples make a step."""

    heading = "training"
    fixed = True
    batch: int = option(128, "examples per step, over all ranks together", ge=1)


@group
class Precision(Options):
    """Say which numbers to compute with."""

    heading = "training"
    fixed = True
    precision: PrecisionName = option(
        "float32",
        "number format; tf32 and bf16 round the operands of products only, and bf16 on a "
        "GPU what convolutions give, too: y, dx and dw, as under PyTorch's autocast",
    )


@group
class Augmentation(Options):
    """Say how training images vary from epoch to epoch."""

    heading = "augmentation of training images"
    fixed = True
    crop: int = option(0, "size of random square crops, pixels", ge=0, le=65536, unset="off")
    pad: int = option(
        0, "border of the mean colour around images before the crop, pixels", ge=0, le=4096
    )
    flip: bool = option(False, "mirror half of the images left to right, at random")
    crop_area: tuple[float, ...] = option(
        (), "cut out this fraction of the area, least and most, and scale it to crop", "X,X",
        unset="off", check=lambda value: fractions(value) if value else (),
    )  # fmt: skip
    crop_ratio: tuple[float, ...] = option(
        (3 / 4, 4 / 3), "crop-area: width / height, least and most", "X,X", check=ratios
    )
    test_size: int = option(
        0, "crop-area: shorter side that images are scaled to in tests, pixels", ge=0, le=65536,
        unset="crop / 0.875, or the image's own if less",
    )  # fmt: skip
    brightness: float = option(0.0, "multiply brightness by 1 - X to 1 + X", ge=0)
    contrast: float = option(0.0, "multiply contrast by 1 - X to 1 + X", ge=0)
    saturation: float = option(0.0, "multiply saturation by 1 - X to 1 + X", ge=0)
    hue: float = option(0.0, "turn hues by -X to X of the colour circle", ge=0, le=0.5)
    erase: float = option(
        0.0, "probability that a box of the image gets the mean colour", ge=0, le=1
    )
    erase_area: tuple[float, ...] = option(
        (0.02, 0.33), "erase: fraction of the image, least and most", "X,X", check=fractions
    )
    mixup: float = option(
        0.0, "average images and labels with others, weights from Beta(X, X); 0: off", ge=0, le=1000
    )
    cutmix: float = option(
        0.0, "put boxes of other images in, sizes from Beta(X, X); 0: off", ge=0, le=1000
    )
    mix_probability: float = option(
        1.0, "mixup, cutmix: probability that a batch is mixed", ge=0, le=1
    )


@group
class Evaluation(Options):
    """Say how examples outside training are run."""

    heading = "evaluation"
    eval_batch: int = option(256, "images at once outside training, over all ranks", ge=1)


@dataclass(frozen=True, kw_only=True)
class DeviceChoice(Options):
    """Say what each rank computes on."""

    heading = "devices"
    device: str = option(
        "auto", "auto, cpu, gpu, gpu:N, or one of these for each rank of a host", "DEVICE,…",
        check=devices_text,
    )  # fmt: skip
    backend: Literal["auto", "numpy", "native"] = option("auto", "kernels of CPU ranks")
    threads: int = option(
        0, "threads per rank", ge=0, le=4096, unset="as many as cores, CPU quota and SLURM leave it"
    )
    pin: bool = option(False, "give each rank of a host cores of its own")
    convolution: Literal["auto", "direct"] = option(
        "auto", "CPU convolutions: the fastest method, or direct: none that transforms its input"
    )
    transport: Literal["auto", "host", "mpi", "nccl"] = option(
        "auto", "how GPU arrays travel: through host memory, by a GPU-aware MPI, or by NCCL"
    )


@group
class Display(Options):
    """Say what is shown and measured meanwhile."""

    heading = "output"
    evaluate_every: float = option(
        1.0, "epochs between tests, on images for validation if there are some; 0: at the end only",
        ge=0,
    )  # fmt: skip
    log_every: int = option(0, "steps between log lines", ge=0, unset="ten an epoch")
    trace: str = option(
        "",
        "write a timeline of ten steps, for Perfetto or chrome://tracing",
        "FILE",
        unset="none",
        check=path,
        names_file=bool,
    )
    forecast: bool = option(
        False,
        "time a few steps without messages beforehand, say what a step will take, and in the end "
        "what it took",
    )
    progress: Literal["auto", "bar", "lines", "off"] = option(
        "auto", "progress as a bar or as lines; auto: a bar on a terminal"
    )


@group
class Stalls(Options):
    """Say what happens where a rank holds the others up."""

    heading = "output"
    stall_warning: float = option(
        60.0, "s without progress until the rank that the others wait for is named; 0: never", ge=0
    )
    stall_abort: float = option(0.0, "s without progress until the job is ended; 0: never", ge=0)
