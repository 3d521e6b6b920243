"""The settings of all commands but training, in groups (see `mpicnn.settings.groups`)."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from mpicnn.settings.checks import (
    amount_text,
    checkpoint_text,
    counts_text,
    extents,
    grid_text,
    names_text,
    nodes_text,
    path,
    splits_text,
)
from mpicnn.settings.choices import Normalised, Order, Scheme, SimulatedShares, Sync
from mpicnn.settings.groups import PlanChoice
from mpicnn.settings.option import Options, group, option


@group
class Checkpoint(Options):
    """Say which trained network."""

    heading = "what to run"
    run: str = option(None, "run directory or checkpoint file", "RUN", positional=True, check=path)
    checkpoint: str = option(
        "auto", "which checkpoint of a run directory: best, last, or that of step N; auto: the "
        "best if the run keeps one, else the last", "best|last|N", check=checkpoint_text,
    )  # fmt: skip


@group
class Evaluated(Options):
    """Say what a trained network is evaluated on."""

    heading = "what to run"
    data: str = option("", "image file", "FILE.h5", unset="that of the run", check=path)
    split: Literal["test", "validation", "train"] = option("test", "which images of it")
    plan: str = option("", "plan, as in training", "PLAN", unset="that of the run", check=path)


@group
class ByClass(Options):
    """Say what is told of each class."""

    heading = "answers"
    by_class: bool = option(
        False, "show precision and recall of every class and, of up to 20 classes, which are taken "
        "for which",
    )  # fmt: skip
    confusion: str = option(
        "", "write the confusion matrix: NAME.csv or, as a picture, NAME.png", "FILE",
        unset="none", check=path,
    )  # fmt: skip
    overwrite: bool = option(False, "replace that file if it exists")


@group
class Predicted(Options):
    """Say which images to classify."""

    heading = "what to run"
    images: tuple[str, ...] = option(
        None, "image files, and folders with image files at any depth", "IMAGE", positional=True
    )


@group
class Answered(Options):
    """Say what is told of each image, and where."""

    heading = "answers"
    top: int = option(5, "how many classes to name per image", ge=1)
    output: str = option(
        "", "file to write: NAME.csv or NAME.json", "FILE", unset="standard output", check=path
    )
    format: Literal["auto", "text", "csv", "json"] = option(
        "auto", "how answers are written; auto: by the ending of output, else as text"
    )
    overwrite: bool = option(False, "replace output if it exists")


@group
class Planned(Options):
    """Say what to plan for, without data and without ranks if need be."""

    heading = "what to plan for"
    ranks: int = option(0, "number of ranks", ge=0, le=10**6, unset="those running")
    input: str = option(
        "", "shape of one image", "CxHxW", unset="that of data", check=extents("3x224x224")
    )
    classes: int = option(0, "number of classes", ge=0, unset="that of data")


@group
class ClusterChoice(Options):
    """Say which cluster, and how much of it."""

    heading = "cluster"
    cluster: str = option(
        None, "TOML file of the cluster: its classes of nodes, and its links", "CLUSTER.toml",
        positional=True, check=path,
    )  # fmt: skip
    nodes: str = option(
        "", "numbers of nodes; 1..64 is 1, 2, 4 and so on up to 64", "N,N..N,…", check=nodes_text,
        unset="1 to as many as the file counts, else 1..64",
    )  # fmt: skip
    seed: int = option(0, "seed of the speeds of nodes that vary", ge=0)


@group
class Simulated(Options):
    """Say what is forecast."""

    heading = "what to forecast"
    data: str = option(
        "", "image file that says shape and classes", "FILE.h5", check=path,
        unset="those that the network was made for; for one of your own, embedded",
    )  # fmt: skip
    input: str = option(
        "", "shape of one image", "CxHxW", unset="as data says", check=extents("3x224x224")
    )
    classes: int = option(0, "number of classes", ge=0, unset="as data says")
    scaling: Literal["strong", "weak"] = option(
        "strong", "whether batch is that of all nodes together or that of each node"
    )


def _as_in_training(name: str) -> Any:
    """Return an option that training has too, described as there."""
    each = PlanChoice.__dataclass_fields__[name]
    return field(default=each.default, metadata=each.metadata)


@group
class SimulatedPlan(Options):
    """Say how the work is divided over any number of ranks."""

    heading = PlanChoice.heading
    plan: str = _as_in_training("plan")
    shares: SimulatedShares = option(
        "measured", "share of the work per rank: by its device's rate of convolutions, as training "
        "measures it, by its speed in the whole network, or the same for all",
    )  # fmt: skip
    grid: str = option(
        "", "ranks as a data x model grid, like x4 (rows of 4), 2x (2 rows) or 2x4", "DxM",
        unset="one axis", check=grid_text,
    )  # fmt: skip
    stages: str = _as_in_training("stages")
    micro_batches: int = _as_in_training("micro_batches")
    order: Order = _as_in_training("order")
    batch_norm: Normalised = _as_in_training("batch_norm")
    scheme: Scheme = _as_in_training("scheme")
    sync: Sync = _as_in_training("sync")
    bucket_mb: float = _as_in_training("bucket_mb")


@group
class Rows(Options):
    """Say what is written, and what is shown beside the forecast."""

    heading = "answers"
    measured: str = option(
        "", "CSV with columns nodes and step_s: measured steps to show beside", "FILE.csv",
        unset="none", check=path,
    )  # fmt: skip
    out: str = option("", "write the rows as CSV", "FILE.csv", unset="none", check=path)
    plot: str = option("", "draw them", "FILE.png", unset="none", check=path)
    overwrite: bool = option(False, "replace these files if they exist")


@group
class Run(Options):
    """Say which run."""

    heading = "what to report"
    run_dir: str = option(None, "run directory", "RUN", positional=True, check=path)


@group
class ImageFile(Options):
    """Say which image file."""

    heading = "file"
    file: str = option(
        None, "image file, or embedded: the packaged one", "FILE", positional=True, check=path
    )


@group
class SourceAndTarget(Options):
    """Say what to read and what to write."""

    heading = "files"
    source: str = option(None, "directory to read", "SOURCE", positional=True, check=path)
    file: str = option(None, "image file (HDF5) to write", "OUT", positional=True, check=path)
    overwrite: bool = option(False, "replace OUT if it exists")


@group
class ClassNames(Options):
    """Say what the classes are called."""

    heading = "images"
    classes: str = option(
        "", "names of the classes, in the order of their labels", "A,B,…", unset="0, 1, 2, …",
        check=names_text,
    )  # fmt: skip


@group
class FolderImages(Options):
    """Say how image files become images, and which of them are for which split."""

    heading = "images"
    size: int = option(
        0, "cut out the centred square and scale it to this size, pixels", "PIXELS", gt=0,
        unset="as they are: all must be of one size",
    )  # fmt: skip
    gray: bool = option(False, "one channel instead of red, green and blue")
    splits: str = option(
        "", "folders of SOURCE for training, validation if any, and testing; or none: its folders "
        "are classes", "TRAIN,TEST", unset="by their names", check=splits_text,
    )  # fmt: skip
    test_fraction: float = option(
        0.0, "part of each class for testing, where no folder is for it", "F", gt=0, lt=1,
        unset="0.1",
    )  # fmt: skip
    skip_broken: bool = option(
        False, "go on without files that cannot be read, and list them in OUT.broken.txt"
    )


@group
class Drawn(Options):
    """Say which training images become images for validation."""

    heading = "images"
    validation: str = option(
        "", "draw images for validation from the training images, by class: how many in all, or a "
        "fraction of each class", "N|F", unset="none", check=amount_text,
    )  # fmt: skip
    seed: int = option(0, "seed of what is drawn by chance", ge=0)


@group
class Storage(Options):
    """Say how much is taken, and how it is stored."""

    heading = "images"
    per_class: str = option(
        "", "take only the first images of each class: how many of those for training, of those "
        "for validation where SOURCE has some, and of those for testing", "TRAIN,TEST",
        unset="all", check=counts_text,
    )  # fmt: skip
    gzip: int = option(
        -1, "compress, level 0 to 9 (for small sets: each rank unpacks them)", "LEVEL", ge=0,
        le=9, unset="not compressed",
    )  # fmt: skip
