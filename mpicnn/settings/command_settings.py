"""The settings of all commands but training. Each joins groups (`mpicnn.settings.option`)."""

from __future__ import annotations

from dataclasses import dataclass

from mpicnn.errors import UserError
from mpicnn.settings.command_groups import (
    Answered,
    ByClass,
    Checkpoint,
    ClassNames,
    ClusterChoice,
    Drawing,
    Drawn,
    Evaluated,
    FolderImages,
    ImageFile,
    Planned,
    Predicted,
    Replayed,
    Rows,
    Run,
    Simulated,
    SimulatedPlan,
    SourceAndTarget,
    Storage,
)
from mpicnn.settings.exchange_groups import Exported, Imported, ImportedNetwork
from mpicnn.settings.groups import (
    Batch,
    DataChoice,
    DeviceChoice,
    Evaluation,
    Frozen,
    ModelChoice,
    Precision,
    Stalls,
)
from mpicnn.settings.plan_groups import Planning, check_auto
from mpicnn.text import one_of


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Checkpoint, Evaluated, ByClass, Evaluation, DeviceChoice, Stalls):
    """Hold the settings of an evaluation. Raises UserError for a file of an unknown format."""

    purpose = "Evaluate a trained network on the test images, or others, of a data set."

    def __post_init__(self) -> None:
        if self.confusion and not self.confusion.lower().endswith((".csv", ".png")):
            raise UserError(
                f"confusion {self.confusion}: expected a name that ends in .csv or .png"
            )


@dataclass(frozen=True, kw_only=True)
class PredictSettings(Checkpoint, Predicted, Answered, Evaluation, DeviceChoice, Stalls):
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
class PlanSettings(
    ModelChoice, DataChoice, Frozen, Planned, Batch, Precision, Planning, DeviceChoice,
):  # fmt: skip
    """Hold the settings of planning. It takes a training run's file and skips the rest of it."""

    purpose = "Show how a plan divides a network over ranks, and what a training step then costs."
    reads_file = True

    def __post_init__(self) -> None:
        check_auto(self)
        if self.machine and self.shares == "measured":
            raise UserError("machine: its speeds are known, none are measured; use plan auto")
        if self.nodes and not self.machine:
            raise UserError("nodes: needs machine, a cluster's file")


@dataclass(frozen=True, kw_only=True)
class SimulateSettings(
    ClusterChoice, ModelChoice, Simulated, Frozen, Batch, Precision, SimulatedPlan, Rows
):
    """Hold the settings of a simulation. Raises UserError for a file of an unknown format."""

    purpose = "Forecast a training step on more and more nodes of a cluster that need not be there."

    def __post_init__(self) -> None:
        check_ending("out", self.out, ".csv")
        check_ending("plot", self.plot, ".png")


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings(Replayed, Drawing):
    """Hold what is replayed. Raises UserError for a file of an unknown format, and for a network
    where none is asked about."""

    purpose = "Replay the tables of a paper: its figures, ours, and what closes the difference."

    def __post_init__(self) -> None:
        check_ending("plot", self.plot, ".png")
        if self.model and self.paper != "survey":
            raise UserError(f"model {self.model}: {self.paper} has its own networks; use survey")


def check_ending(name: str, value: str, ending: str) -> None:
    """Raise UserError for the name of a file, if it is given, that ends otherwise."""
    if value and not value.lower().endswith(ending):
        raise UserError(f"{name} {value}: expected a name that ends in {ending}")


@dataclass(frozen=True, kw_only=True)
class LoadSettings(Checkpoint, DeviceChoice):
    """Hold which trained network to load, and what ranks compute on."""

    purpose = "Load a trained network."


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Checkpoint, Exported):
    """Hold the settings of an export. Raises UserError for a file of an unknown format."""

    purpose = "Write a trained network as ONNX, or its weights as safetensors."

    def __post_init__(self) -> None:
        if not self.file.lower().endswith((".onnx", ".safetensors")):
            raise UserError(f"file {self.file}: expected a name that ends in .onnx or .safetensors")
        if self.normalise and not self.file.lower().endswith(".onnx"):
            raise UserError("normalise: a graph can do it, weights cannot; give FILE.onnx")


@dataclass(frozen=True, kw_only=True)
class ImportSettings(Imported, ImportedNetwork):
    """Hold the settings of an import. Raises UserError where two do not fit together."""

    purpose = (
        "Read a network of another program: for --model and --init of training, and for "
        "evaluation and prediction."
    )

    def __post_init__(self) -> None:
        endings = (".onnx", ".safetensors", ".pt", ".pth")
        if not self.file.lower().endswith(endings):
            raise UserError(f"file {self.file}: expected a name that ends in {one_of(endings)}")
        if self.model and self.file.lower().endswith(".onnx"):
            raise UserError("model: an ONNX file holds its network; leave --model out")
        if len(self.mean) != len(self.std):
            raise UserError("mean and std: give both, each a number for every channel")


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
