"""Runs follow their files: data and networks are told by what they are, from any directory."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from data_samples import sample
from mpi4py import MPI

from mpicnn.checkpoint import read_meta
from mpicnn.commands import evaluate, train
from mpicnn.data.write import writing
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals
from mpicnn.run.resuming import first_difference

NETWORK = """
from mpicnn.layers import Flatten, Linear, ReLU
class Own(ReLU):
    pass
class relu(ReLU):
    pass
def model(input_shape, classes):
    return [("flat", Flatten()), ("fc1", Linear({})), ("relu", {}()), ("fc2", Linear(classes))]
"""


def command(*arguments: Any) -> None:
    train.main(MPI.COMM_SELF, ["train", *map(str, arguments)], Signals())


def resume(*arguments: Any) -> None:
    command("--run-dir", "run", "--resume", "--progress", "off", *arguments)


def score(*arguments: Any) -> None:
    evaluate.main(MPI.COMM_SELF, ["evaluate", *map(str, arguments)])


def kept(run: str = "run") -> tuple[dict[str, Any], int]:
    """Return a run's file of settings, and the step of its newest checkpoint."""
    newest = max(Path(run, "checkpoints").iterdir())
    return tomllib.loads(Path(run, "config.toml").read_text()), read_meta(newest)["step"]


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train one step in `here/`, of a network and data in files, by relative paths."""

    def run(layer: str = "ReLU", *options: Any) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        sample(Path("a.h5"), train=16, test=4, shape=(1, 12, 12))
        Path("net.py").write_text(NETWORK.format(8, layer))
        command(
            "--data", "a.h5", "--model", "net.py", "--batch", 8, "--run-dir", "run", "--epochs",
            0.5, "--threads", 1, "--progress", "off", *options,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("digests", [True, False], ids=["digests", "older file"])
def test_a_run_follows_data_that_have_moved(begin, monkeypatch, capfd, digests) -> None:
    begin()
    if not digests:
        shutil.rmtree("run")
        with h5py.File("a.h5", "r+") as file:
            del file["train/sha256"], file["test/sha256"]
        resume("--data", "a.h5", "--model", "net.py", "--batch", 8, "--epochs", 0.5)
    paths, step = kept()
    here = Path.cwd()
    assert (paths["data"], paths["model"]) == (str(here / "a.h5"), str(here / "net.py"))
    assert step == 1
    resume("--epochs", 1, "--data", "./a.h5")

    (here / "there").mkdir()
    monkeypatch.chdir(here / "there")
    resume("--run-dir", "../run", "--epochs", 1.5)
    score("../run")
    shutil.move("../a.h5", "b.h5")
    for again in (lambda: resume("--run-dir", "../run", "--epochs", 2), lambda: score("../run")):
        with pytest.raises(UserError, match=r"here/a.h5: no such file; if .* moved, .* --data"):
            again()
    # With no step to be made there is no new checkpoint, and config.toml alone knows the place.
    os.utime("b.h5")  # as a copy has it
    capfd.readouterr()
    resume("--run-dir", "../run", "--epochs", 1.5, "--data", "b.h5")
    said = "all its images are checked now" if digests else "only a few of them are compared"
    assert said in capfd.readouterr().err
    score("../run")
    resume("--run-dir", "../run", "--epochs", 2)
    paths, step = kept("../run")
    assert paths["data"] == str(here / "there" / "b.h5") and step == 4


def test_other_data_are_refused_wherever_they_lie(begin) -> None:
    begin()
    before = Path("run/config.toml").read_bytes()
    draw = np.random.default_rng(1)
    labels = {"train": np.zeros(16, np.int64), "test": np.arange(4)}
    shutil.move("a.h5", "b.h5")
    with writing(Path("a.h5"), ("ant", "bee", "cat", "dög"), (1, 12, 12), labels, None) as writer:
        for split, found in labels.items():
            writer.append(split, draw.integers(0, 256, (len(found), 1, 12, 12), np.uint8))
    for arguments in ((), ("--data", "a.h5"), ("--data", "embedded")):
        with pytest.raises(UserError, match="not the data set that the run began with"):
            resume("--epochs", 1, *arguments)
    with pytest.raises(UserError, match="a.h5: not the data set .* another of the same classes"):
        score("run")
    score("run", "--data", "a.h5")  # named, so meant
    assert Path("run/config.toml").read_bytes() == before
    resume("--epochs", 1, "--data", "b.h5")


def test_the_network_is_that_of_the_checkpoint(begin) -> None:
    begin()
    Path("net.py").write_text(NETWORK.format(9, "ReLU"))
    resume("--epochs", 1)
    with pytest.raises(UserError, match=r"net.py: not the network .*\(fc1\): o 8 before, 9 now"):
        resume("--epochs", 1.5, "--model", "net.py")
    with pytest.raises(UserError, match="model default: not the network"):
        resume("--epochs", 1.5, "--model=default")
    Path("net.py").unlink()
    with pytest.raises(UserError, match="net.py: no such file; without --model"):
        resume("--epochs", 1.5, "--model", "net.py")
    resume("--epochs", 1.5)
    assert kept()[0]["model"] == str(Path.cwd() / "net.py")
    Path("moved.py").write_text(NETWORK.format(8, "ReLU"))
    resume("--epochs", 2, "--model", "moved.py")
    config, step = kept()
    assert config["model"] == str(Path.cwd() / "moved.py") and step == 4

    # A network that is written into the file of settings is as good as one on the command line.
    text = Path("run/config.toml").read_text()
    Path("run/config.toml").write_text(text.replace(config["model"], "default"))
    with pytest.raises(UserError, match="model default: not the network"):
        resume("--epochs", 2.5)


@pytest.mark.parametrize(("layer", "kind"), [("Own", "Own"), ("relu", "own relu")])
def test_layers_that_a_file_alone_defines_need_the_file(begin, layer, kind) -> None:
    begin(layer)
    resume("--epochs", 1)
    shutil.move("net.py", "moved.py")
    shutil.move("run/network.py", "copy.py")
    with pytest.raises(UserError, match=r"net.py: no such file; .* layers .* --model FILE.py"):
        resume("--epochs", 1.5)
    resume("--epochs", 1.5, "--model", "moved.py")
    Path("moved.py").write_text(NETWORK.format(8, "ReLU"))
    with pytest.raises(UserError, match=rf"\(relu\): type {kind} before, relu now"):
        resume("--epochs", 2, "--model", "moved.py")


def test_where_networks_differ() -> None:
    one, two = {"name": "fc1", "o": 3}, {"name": "fc2", "o": 4}
    assert first_difference([one, two], [one, two]) is None
    assert first_difference([one], [one, two]) == "layer 2 (fc2): name None before, fc2 now"
    assert (
        first_difference([one, two], [one, {**two, "o": 5}]) == "layer 2 (fc2): o 4 before, 5 now"
    )


def test_plan_calibration_and_timeline_are_those_of_the_first_directory(
    begin, monkeypatch, capfd
) -> None:
    begin("ReLU", "--calibration", "c.json", "--trace", "t.json")
    here = Path.cwd()
    Path("p.toml").write_text('preset = "owt"\n')
    resume("--epochs", 1, "--plan", "p.toml")
    (here / "there").mkdir()
    monkeypatch.chdir(here / "there")
    capfd.readouterr()
    resume("--run-dir", "../run", "--epochs", 1.5)
    assert "t.json: is there already" in capfd.readouterr().err
    assert not list(Path().iterdir())
    (here / "p.toml").unlink()
    with pytest.raises(UserError, match=r"p.toml: no such file; .* --plan \.\./run/plan.toml"):
        resume("--run-dir", "../run", "--epochs", 2)
    resume("--run-dir", "../run", "--epochs", 2, "--plan", "../run/plan.toml")
    assert kept("../run")[0]["plan"] == str(here / "run" / "plan.toml")
