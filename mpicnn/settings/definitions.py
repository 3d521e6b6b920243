"""The settings of every command: one description gives the file, the flags and `--help`.

The settings are plain frozen dataclasses whose fields carry their description and bounds
(`mpicnn.settings.groups`). One rank reads them, by `parse`; the others get what it found, by
`from_json`. Flags override the file, the file the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, overload

from mpicnn.errors import UserError
from mpicnn.job.environment import Environ
from mpicnn.settings.groups import (
    Augmentation,
    Batch,
    Choosing,
    DataChoice,
    DeviceChoice,
    Display,
    Evaluation,
    Frozen,
    Length,
    ModelChoice,
    Precision,
    RunDirectory,
    Stalls,
    Start,
)
from mpicnn.settings.learning import LossChoice, OptimiserChoice
from mpicnn.settings.option import Options
from mpicnn.settings.option import differences as differences
from mpicnn.settings.plan_groups import AUTO, Planning, check_auto

if TYPE_CHECKING:
    from mpicnn.settings.command_settings import EvaluateSettings, PlanSettings, PredictSettings


@dataclass(frozen=True, kw_only=True)
class Settings(
    ModelChoice, DataChoice, Start, Frozen, RunDirectory, Length, Batch, OptimiserChoice,
    LossChoice, Precision, Augmentation, Evaluation, Choosing, Planning, DeviceChoice, Display,
    Stalls,
):  # fmt: skip
    """Hold the settings of a training run. Raises UserError where two do not fit together."""

    purpose = "Train a convolutional network on all MPI ranks that are started."
    reads_file = True

    def __post_init__(self) -> None:
        check_auto(self)
        if self.plan == AUTO and self.fc_update == "round":
            raise UserError(
                "fc-update round: what is learnt depends on the plan; name one, not plan auto"
            )
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


COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "train": "Settings",
        "evaluate": "EvaluateSettings",
        "predict": "PredictSettings",
        "plan": "PlanSettings",
        "simulate": "SimulateSettings",
        "reproduce": "ReproduceSettings",
        "report": "ReportSettings",
        "export": "ExportSettings",
        "import": "ImportSettings",
        "data info": "InfoSettings",
        "data verify": "VerifySettings",
        "data prepare folder": "FolderSettings",
        "data prepare idx": "IdxSettings",
        "data prepare cifar10": "Cifar10Settings",
        "data prepare cifar100": "Cifar100Settings",
    }
)
"""The name of each command's settings, by the command's words. They start it as `mpicnn WORDS`
and, the first one, as `python -m mpicnn.WORD`."""


def settings_of(command: str) -> type[Options]:
    """Return the settings that a command reads."""
    if command == "train":
        return Settings
    from mpicnn.settings import command_settings  # training does without them, and starts sooner

    kind: type[Options] = getattr(command_settings, COMMANDS[command])
    return kind


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
    import shutil  # on the one rank that reads settings alone, as the parser

    from mpicnn.settings import parser

    columns = environ.get("COLUMNS", "")
    width = int(columns) if columns.isdigit() else shutil.get_terminal_size().columns
    form = parser.Form(prog or module_of(command), min(width, 100) - 2)
    if command not in COMMANDS:
        kinds = {name: settings_of(name) for name in COMMANDS if name.startswith(command)}
        return parser.refuse(argv, command, form, kinds)
    skipped = {each.name for _, each in Settings.options()} if command == "plan" else set()
    return parser.read(argv, settings_of(command), form, skipped)


def module_of(command: str) -> str:
    """Return how a command is started as a module."""
    word, _, rest = command.partition(" ")
    return f"python -m mpicnn.{word} {rest}".rstrip() if word else "mpicnn"
