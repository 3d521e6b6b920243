"""The settings of every command: one description gives the file, the flags and `--help`.

The settings are plain frozen dataclasses whose fields carry their description and bounds
(`mpicnn.settings.groups`). One rank reads them, by `parse`; the others get what it found, by
`from_json`. Flags override the file, the file the defaults.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, overload

from mpicnn.errors import UserError
from mpicnn.job.environment import Environ
from mpicnn.settings.command_groups import (
    Answered,
    ByClass,
    Checkpoint,
    ClassNames,
    Drawn,
    Evaluated,
    FolderImages,
    ImageFile,
    Planned,
    Predicted,
    Run,
    SourceAndTarget,
    Storage,
)
from mpicnn.settings.groups import (
    Augmentation,
    Batch,
    Choosing,
    DataChoice,
    DeviceChoice,
    Display,
    Evaluation,
    Length,
    ModelChoice,
    PlanChoice,
    Precision,
    RunDirectory,
)
from mpicnn.settings.learning import LossChoice, OptimiserChoice
from mpicnn.settings.option import Options
from mpicnn.settings.option import differences as differences


@dataclass(frozen=True, kw_only=True)
class Settings(
    ModelChoice, DataChoice, RunDirectory, Length, Batch, OptimiserChoice, LossChoice, Precision,
    Augmentation, Evaluation, Choosing, PlanChoice, DeviceChoice, Display,
):  # fmt: skip
    """Hold the settings of a training run. Raises UserError where two do not fit together."""

    purpose = "Train a convolutional network on all MPI ranks that are started."
    reads_file = True

    def __post_init__(self) -> None:
        if self.pad and not self.crop:
            raise UserError("pad needs crop: give crop, the size to cut from the padded images")
        if self.crop_area and not self.crop:
            raise UserError("crop-area needs crop: give crop, the size that boxes are scaled to")
        if self.test_size and not self.crop_area:
            raise UserError("test-size needs crop-area: without it images are not scaled")
        if 0 < self.test_size < self.crop:
            raise UserError(f"test-size {self.test_size}: expected at least crop, {self.crop}")
        if self.schedule == "steps" and not self.drops:
            raise UserError("schedule steps needs drops: fractions of the run, like 0.5,0.75")
        if self.resume and not self.run_dir:
            raise UserError("resume needs run-dir: the directory of the run to go on with")
        if self.patience and self.best == "off":
            raise UserError("patience needs best: the metric that is to get better, like top1")
        self.check_optimiser()
        if self.class_weights and self.fc_update == "round":
            raise UserError(
                "fc-update round does not go with class-weights, which count over a whole batch: "
                "use fc-update step"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Checkpoint, Evaluated, ByClass, Evaluation, DeviceChoice):
    """Hold the settings of an evaluation. Raises UserError for a file of an unknown format."""

    purpose = "Evaluate a trained network on the test images, or others, of a data set."

    def __post_init__(self) -> None:
        if self.confusion and not self.confusion.lower().endswith((".csv", ".png")):
            raise UserError(
                f"confusion {self.confusion}: expected a name that ends in .csv or .png"
            )


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Checkpoint, Predicted, Answered, Evaluation, DeviceChoice):
    """Hold the settings of a prediction. Raises UserError where no format is known of an output."""

    purpose = "Classify images with a trained network."

    def __post_init__(self) -> None:
        assert self.form

    @property
    def form(self) -> str:
        """Return how answers are written: "text", "csv" or "json"."""
        if self.format != "auto" or not self.output:
            return "text" if self.format == "auto" else self.format
        ending = self.output.rpartition(".")[2].lower()
        if ending not in ("csv", "json"):
            raise UserError(
                f"output {self.output}: expected a name that ends in .csv or .json; or give "
                "--format text, csv or json"
            )
        return ending


@dataclass(frozen=True, kw_only=True)
class PlanSettings(ModelChoice, DataChoice, Planned, Batch, Precision, PlanChoice, DeviceChoice):
    """Hold the settings of planning. It takes a training run's file and skips the rest of it."""

    purpose = "Show how a plan divides a network over ranks, and what a training step then costs."
    reads_file = True


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Checkpoint, DeviceChoice):
    """Hold which trained network to load, and what ranks compute on."""

    purpose = "Load a trained network."


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Run):
    """Hold the settings of a report."""

    purpose = "Draw the loss and accuracy of a run over its epochs: curves.png."


@dataclass(frozen=True, kw_only=True)
class InfoSettings(ImageFile):
    """Hold the settings of showing an image file."""

    purpose = "Show what an image file holds."


@dataclass(frozen=True, kw_only=True)
class VerifySettings(ImageFile):
    """Hold the settings of checking an image file."""

    purpose = (
        "Check that all images in a file are those that were prepared, by their digests. Ranks "
        "share the work."
    )


@dataclass(frozen=True, kw_only=True)
class IdxSettings(SourceAndTarget, ClassNames, Drawn, Storage):
    """Hold the settings of preparing MNIST's format."""

    purpose = (
        "Prepare a data set in MNIST's format. SOURCE holds train-images-idx3-ubyte, "
        "train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each plain "
        "or .gz."
    )


@dataclass(frozen=True, kw_only=True)
class Cifar10Settings(SourceAndTarget, Drawn, Storage):
    """Hold the settings of preparing CIFAR-10."""

    purpose = (
        "Prepare CIFAR-10. SOURCE holds its binary version, unpacked: data_batch_1.bin and so on."
    )


@dataclass(frozen=True, kw_only=True)
class Cifar100Settings(SourceAndTarget, Drawn, Storage):
    """Hold the settings of preparing CIFAR-100."""

    purpose = (
        "Prepare CIFAR-100 with its fine labels. SOURCE holds its binary version, unpacked: "
        "train.bin and test.bin."
    )


@dataclass(frozen=True, kw_only=True)
class FolderSettings(SourceAndTarget, FolderImages, Drawn, Storage):
    """Hold the settings of preparing image files."""

    purpose = (
        "Prepare image files in folders. They lie in SOURCE/train/CLASS/, SOURCE/test/CLASS/ and, "
        "if there are images for validation, SOURCE/val/CLASS/; or in SOURCE/CLASS/. Classes are "
        "numbered in the order of their sorted names. What is read and what is skipped: "
        "docs/data-format.md."
    )


COMMANDS: Mapping[str, type[Options]] = MappingProxyType(
    {
        "train": Settings,
        "evaluate": EvaluateSettings,
        "predict": PredictSettings,
        "plan": PlanSettings,
        "report": ReportSettings,
        "data info": InfoSettings,
        "data verify": VerifySettings,
        "data prepare folder": FolderSettings,
        "data prepare idx": IdxSettings,
        "data prepare cifar10": Cifar10Settings,
        "data prepare cifar100": Cifar100Settings,
    }
)
"""Every command by its words: as `mpicnn WORDS` and, the first one, as `python -m mpicnn.WORD`."""


def split_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command whose words `argv` begins with, and the arguments behind them.

    Where the words end too early, the command is what there is of them: no key of `COMMANDS`.
    """
    words: list[str] = []
    for word in argv:
        begun = [name for name in COMMANDS if name.split()[: len(words) + 1] == [*words, word]]
        if not begun:
            break
        words.append(word)
    return " ".join(words), list(argv[len(words) :])


@overload
def parse(argv: list[str], command: Literal["train"], environ: Environ) -> Settings: ...
@overload
def parse(argv: list[str], command: Literal["evaluate"], environ: Environ) -> EvaluateSettings: ...
@overload
def parse(argv: list[str], command: Literal["predict"], environ: Environ) -> PredictSettings: ...
@overload
def parse(argv: list[str], command: Literal["plan"], environ: Environ) -> PlanSettings: ...
@overload
def parse(argv: list[str], command: str, environ: Environ, prog: str = "") -> Options: ...
def parse(argv: list[str], command: str, environ: Environ, prog: str = "") -> Options:
    """Return what `argv` (without the program's name) and the file named there ask for.

    `command` is one of `COMMANDS`, `prog` what stands for it in `--help`; COLUMNS in `environ` is
    the width of `--help`. Raises UserError for the first thing that is wrong in flags or file, and
    SystemExit(0) after `--help`, `--version` and `--recipes`.
    """
    from mpicnn.settings import parser

    columns = environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() else shutil.get_terminal_size().columns
    form = parser.Form(prog or module_of(command), min(width, 100) - 2)
    if command not in COMMANDS:
        return parser.refuse(argv, command, form, COMMANDS)
    skipped = {each.name for _, each in Settings.options()} if command == "plan" else set()
    return parser.read(argv, COMMANDS[command], form, skipped)


def module_of(command: str) -> str:
    """Return how a command is started as a module."""
    word, _, rest = command.partition(" ")
    return f"python -m mpicnn.{word} {rest}".rstrip() if word else "mpicnn"
