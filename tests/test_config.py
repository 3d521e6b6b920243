"""The settings: one description, three ways in (defaults, file, flags), one line for mistakes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mpicnn.errors import UserError
from mpicnn.settings import definitions as config
from mpicnn.settings.checks import path
from mpicnn.settings.command_settings import PlanSettings
from mpicnn.settings.definitions import Settings

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        (tmp_path / "run.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "run.toml")

    return write


def train(*argv: str) -> Settings:
    return config.parse(list(argv), "train", {})


def test_defaults_then_file_then_flags(write: Write) -> None:
    assert train() == Settings()
    file = write('batch = 64\nrate = 0.5\nbias-rate = 2\nrun_dir = "here"\n')
    assert train(file, "--rate", "0.25") == Settings(
        batch=64, rate=0.25, bias_rate=2.0, run_dir="here"
    )
    assert train("--rate", "0.25", file) == train(file, "--rate=0.25")


@pytest.mark.parametrize("command", ["train", "plan"])
def test_every_default_may_be_given_and_passes_its_own_bounds(command: str) -> None:
    defaults = config.parse([], command, {})
    argv = []
    for _, each in defaults.options():
        name, value = each.name.replace("_", "-"), each.default
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        else:
            listed = isinstance(value, tuple)
            argv.append(f"--{name}={[*value] if listed else value}")
    assert config.parse(argv, command, {}) == defaults


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--flip"], "flip", True),
        (["--flip", "--no-flip"], "flip", False),
        (["--drops", "0.25,0.5,0.75"], "drops", (0.25, 0.5, 0.75)),
        (["--drops", "0.25", "--drops", "0.5"], "drops", (0.25, 0.5)),
        (["--rate", "1e-5"], "rate", 1e-5),
        (["--batch", "3", "--batch", "4"], "batch", 4),
        (["--shares", "2, 1.5,1"], "shares", "2,1.5,1"),
        (["--shares", "2,0"], "shares", "2,0"),
        (["--shares", "measured"], "shares", "measured"),
        (["--grid", "2x4"], "grid", "2x4"),
        (["--class-weights", "1, 2.5"], "class_weights", "1,2.5"),
        (["--model", "null"], "model", "null"),
        (["--model", "[a"], "model", "[a"),
        (["--seed", str(2**63 - 1)], "seed", 2**63 - 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flag(flags: list[str], field: str, value: object) -> None:
    found = getattr(train(*flags), field)
    assert found == value
    assert type(found) is type(value)


def test_shares_may_be_a_list_in_the_file(write: Write) -> None:
    assert train(write("shares = [2, 1.5, 1]")).shares == "2,1.5,1"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--rate nan", ["--rate", "nan", "a number above 0"]),
        ("--rate inf", ["--rate", "inf", "a number above 0"]),
        ("--rate 0", ["--rate", "above 0"]),
        ("--batch 0", ["--batch", "'0'", "whole number of at least 1"]),
        ("--batch twelve", ["--batch", "twelve", "whole number", "over all ranks"]),
        ("--batch 1.5", ["--batch", "1.5", "whole number"]),
        ("--batch", ["--batch", "one argument"]),
        ("--seed 9223372036854775808", ["--seed", "at most"]),
        ("--momentum 1", ["--momentum", "below 1"]),
        ("--precision fp8", ["--precision", "fp8", "float32, float64, tf32 or bf16"]),
        ("--drops 0.5,0.25", ["--drops", "rising"]),
        ("--drops 0.5,1.5", ["--drops", "1.5", "below 1"]),
        ("--drops x", ["--drops", "x", "fractions"]),
        ("--drops [0.5", ["drops"]),
        ("--shares 0,0", ["--shares", "number per rank, not all 0"]),
        ("--shares 2,nan", ["--shares", "number per rank, not all 0"]),
        ("--shares fast", ["--shares", "fast", "equal, measured"]),
        ("--grid 2x", ["--grid", "2x4"]),
        ("--grid 2x2x2", ["--grid", "2x4"]),
        ("--grid 0x2", ["--grid", "2x4"]),
        ("--bacth 3", ["--bacth", "did you mean --batch", "examples"]),
        ("--run_dir here", ["--run_dir", "did you mean --run-dir"]),
        ("--batc 3", ["--batc", "did you mean --batch"]),
        ("--qqq", ["--qqq", "no such option", "--help"]),
        ("a.toml b.toml", ["b.toml", "too many"]),
        ("missing.toml", ["missing.toml", "no such file or recipe"]),
        ("--pad 4", ["pad", "crop"]),
        ("--crop-area 0.08,1", ["crop-area", "crop"]),
        ("--crop 8 --crop-area 0.5", ["--crop-area", "0.08,1"]),
        ("--erase-area 0.5,0.2", ["--erase-area", "least and most"]),
        ("--crop-ratio 0,1", ["--crop-ratio", "least and most"]),
        ("--test-size 40", ["test-size", "crop-area"]),
        ("--crop 8 --crop-area 0.08,1 --test-size 7", ["test-size 7", "8"]),
        ("--hue 0.6", ["--hue", "0.5"]),
        ("--schedule steps --drops []", ["steps", "drops"]),
        ("--resume", ["resume", "run-dir"]),
        ("--optimiser adam", ["--optimiser", "sgd, adamw, lars or lamb"]),
        ("--optimiser adamw --nesterov", ["nesterov", "sgd", "adamw"]),
        ("--optimiser lamb --momentum 0.5", ["momentum", "sgd or lars", "lamb"]),
        ("--trust 0.1", ["trust", "lars", "sgd"]),
        ("--beta1 0.5", ["beta1", "adamw or lamb", "sgd"]),
        ("--optimiser lars --beta2 0.5", ["beta2", "adamw or lamb", "lars"]),
        ("--eps 1", ["eps", "adamw or lamb", "sgd"]),
        ("--nesterov --momentum 0", ["nesterov", "momentum above 0"]),
        ("--power 3", ["power", "polynomial", "constant"]),
        ("--optimiser lars --scaling owt", ["scaling owt", "lars", "linear or sqrt"]),
        ("--fc-update round --optimiser adamw", ["fc-update round", "optimiser adamw"]),
        ("--fc-update round --clip 1", ["fc-update round", "clip"]),
        ("--fc-update round --class-weights balanced", ["fc-update round", "class-weights"]),
        ("--ema 1", ["--ema", "below 1"]),
        ("--label-smoothing 1", ["--label-smoothing", "below 1"]),
        ("--class-weights 1,0", ["--class-weights", "balanced, or a number above 0 per class"]),
        ("--class-weights heavy", ["--class-weights", "heavy", "per class"]),
    ],
)
def test_wrong_flag_is_one_line(flags: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train(*flags.split(" "))
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bacth = 3", ["bacth", "did you mean batch", "over all ranks"]),
        ("batch = true", ["batch", "True", "whole number"]),
        ("rate = false", ["rate", "a number above 0"]),
        ("rate = nan", ["rate", "nan", "above 0"]),
        ("batch = 3\nrate == 1", ["line 2"]),
        ("[training]\nbatch = 3", ["[training]", "not in tables"]),
        ('run-dir = "a"\nrun_dir = "b"', ["run_dir", "twice"]),
        ("model = 3", ["model", "3", "text"]),
        ("drops = 0.5", ["drops", "a list", "fractions"]),
        ("drops = [0.5, 0.5]", ["drops", "rising"]),
        ("shares = [1, -1]", ["shares", "not all 0"]),
        ("class-weights = [1, -1]", ["class-weights", "above 0"]),
        ("threads = 1979-05-27", ["threads", "whole number"]),
    ],
)
def test_wrong_file_is_one_line_that_names_it(write: Write, text: str, words: list[str]) -> None:
    file = write(text)
    with pytest.raises(UserError) as caught:
        train(file)
    assert str(caught.value).startswith(file)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_flag_mends_wrong_value_in_file_and_is_blamed_for_its_own(write: Write) -> None:
    file = write("batch = 0")
    assert train(file, "--batch", "1").batch == 1
    with pytest.raises(UserError, match="^--batch '-1'"):
        train(file, "--batch", "-1")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        train(str(tmp_path / "run.toml"))
    with pytest.raises(UserError, match="UTF-8"):
        train("--run-dir", "\udcff")


AWKWARD = Settings(
    model='a"b\\c\n\t\x7fé.py', run_dir="runs/ü 1", rate=0.1 + 0.2, decay=5e-324, warmup=1e16,
    drops=(0.1, 1 / 3), seed=2**63 - 1, flip=True, crop=24, pad=4, shares="2,1", resume=True,
    crop_area=(0.1, 1.0),
)  # fmt: skip


@pytest.mark.parametrize("settings", [Settings(), AWKWARD], ids=["defaults", "awkward"])
def test_settings_survive_toml_and_json(write: Write, settings: Settings) -> None:
    assert train(write(settings.to_toml())) == settings
    assert Settings.from_json(settings.to_json()) == settings
    names = [each.name.replace("_", "-") for _, each in Settings.options()]
    assert list(tomllib.loads(settings.to_toml())) == names


def test_differences_name_only_what_may_not_change() -> None:
    old = Settings()
    free = replace(
        old, plan="owt", shares="2,1", threads=3, device="gpu", epochs=99.0, log_every=1,
        resume=True, run_dir="runs/x", scheme="b", eval_batch=7, model="other", data="d.h5",
    )  # fmt: skip
    assert config.differences(old, free) == []
    for name, value in {
        "batch": 3, "seed": 2, "rate": 0.5, "flip": True,
        "precision": "float64", "reference_batch": 9, "drops": (0.1,),
    }.items():  # fmt: skip
        (line,) = config.differences(old, replace(old, **{name: value}))
        assert line.startswith(f"{name.replace('_', '-')}: {getattr(old, name)} before, {value}")


def test_absolute_paths_are_those_of_files_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getcwd", lambda: "/there")
    assert Settings().absolute() == Settings()
    files = {
        "model": "net.py", "data": "a", "run_dir": "../r", "plan": "./p.toml", "calibration": "c",
        "trace": "/t.json", "init": "r/best.h5",
    }  # fmt: skip
    checked = {each.name for _, each in Settings.options() if each.metadata.get("check") is path}
    assert files.keys() == checked
    found = Settings(**files).absolute()
    assert {name: getattr(found, name) for name in files} == {
        "model": "/there/net.py", "data": "/there/a", "run_dir": "/r", "plan": "/there/p.toml",
        "calibration": "/there/c", "trace": "/t.json", "init": "/there/r/best.h5",
    }  # fmt: skip


def test_settings_of_another_version_are_refused_by_name() -> None:
    assert Settings.from_json('{"batch": 3}') == Settings(batch=3)
    with pytest.raises(UserError, match="colour"):
        Settings.from_json('{"batch": 3, "colour": 1}')


def test_predict_takes_names_of_images_as_they_are() -> None:
    found = config.parse(["runs/a", "x,y.png", "[z.png", "--top", "2"], "predict", {})
    assert (found.run, found.images, found.top) == ("runs/a", ("x,y.png", "[z.png"), 2)
    with pytest.raises(UserError, match="IMAGE"):
        config.parse(["runs/a"], "predict", {})


def test_evaluate_needs_a_run() -> None:
    assert config.parse(["runs/a", "--data", "d.h5"], "evaluate", {}).data == "d.h5"
    with pytest.raises(UserError, match="RUN"):
        config.parse([], "evaluate", {})


def test_plan_reads_the_file_of_a_training_run(write: Write) -> None:
    file = write('batch = 64\nrate = 0.5\nplan = "owt"\n')
    found = config.parse([file, "--input", "3x24x24", "--ranks", "5"], "plan", {})
    assert found == PlanSettings(batch=64, plan="owt", input="3x24x24", ranks=5)
    with pytest.raises(UserError, match="did you mean batch"):
        config.parse([write("bacth = 3")], "plan", {})


def test_other_ranks_do_not_import_the_parser() -> None:
    code = (
        "import sys; from mpicnn.settings.definitions import Settings;"
        "Settings.from_json(Settings().to_json());"
        "sys.exit('mpicnn.settings.parser' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
