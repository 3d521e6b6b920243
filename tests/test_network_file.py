"""Networks with layer classes of a user's own: the run keeps their file, and says it runs it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import sample
from mpi4py import MPI

import mpicnn
from mpicnn.checkpoint import read_meta
from mpicnn.commands import evaluate, predict, train
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals
from mpicnn.run.meta import check_meta
from mpicnn.run.network_file import keep

SELF = MPI.COMM_SELF
NETWORK = """
import sys
from dataclasses import dataclass
from pathlib import Path
from mpicnn.layers import Flatten, Linear, ReLU
from mpicnn.layers.base import Layer, Param

@dataclass(frozen=True)
class Scaled(Layer):
    start: float = {start}

    def params(self, shape):
        return {{"gain": Param(shape, "ones", bias=True)}}

    def forward(self, ops, x, p, ctx):
        return x * p["gain"] * self.start, None

    def backward(self, ops, dy, tape, p, ctx):
        gain = (dy * tape.x).sum(axis=0) * self.start
        return dy * p["gain"] * self.start, {{"gain": gain}}

def model(input_shape, classes):
    print("the file runs", file=sys.stderr, flush=True)
    return [("flat", Flatten()), ("fc1", Linear(8)), ("own", {layer}()), ("fc2", Linear(classes))]
"""
NOTE = "mpicnn: note: runs code from {}: it defines layers of the network"


def text(layer: str = "Scaled", start: float = 0.5) -> str:
    return NETWORK.format(layer=layer, start=start)


def command(*arguments: Any, comm: Any = SELF) -> None:
    with Signals() as signals:
        train.main(comm, ["train", *map(str, arguments)], signals)


def resume(*arguments: Any, comm: Any = SELF) -> None:
    command("--run-dir", "run", "--resume", "--progress", "off", *arguments, comm=comm)


def score(*arguments: Any) -> None:
    evaluate.main(SELF, ["evaluate", *map(str, arguments)])


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train one epoch of the network in a file."""

    def run(layer: str = "Scaled", comm: Any = SELF, **more: Any) -> None:
        monkeypatch.chdir(comm.bcast(str(tmp_path)))
        if comm.rank == 0:
            sample(Path("a.h5"), train=16, test=4, shape=(1, 6, 6))
            Path("net.py").write_text(text(layer))
        comm.Barrier()
        command(
            "--data", "a.h5", "--model", "net.py", "--batch", 8, "--run-dir", "run", "--epochs", 1,
            "--threads", 1, "--progress", "off", *more.get("options", ()), comm=comm,
        )  # fmt: skip

    return run


def test_a_run_and_its_checkpoints_need_no_other_file_than_its_copy(begin, capfd) -> None:
    begin()
    shown = capfd.readouterr()
    (test,) = [line for line in shown.out.splitlines() if line.startswith("test: ")]
    assert "runs code" not in shown.err  # the user has named it
    assert Path("run/network.py").read_text() == text()
    Path("net.py").unlink()
    copy = Path("run/network.py").absolute()
    for again in (
        lambda: score("run"),
        lambda: score("run/checkpoints/step-00000002.h5"),
        lambda: mpicnn.load("run", comm=SELF),
        lambda: predict.main(SELF, ["predict", "run", "image.png"]),
    ):
        if not Path("image.png").exists():
            from PIL import Image

            Image.fromarray(np.zeros((6, 6), np.uint8)).save("image.png")
        again()
        shown = capfd.readouterr()
        note, runs, *_ = shown.err.splitlines()
        assert note in (NOTE.format(copy), NOTE.format("run/network.py"))
        assert runs == "the file runs"
        if shown.out.startswith("run"):
            assert test.partition(", top-5")[0] in shown.out
    shutil.move("run", "moved")
    resume("--run-dir", "moved", "--epochs", 2)
    assert capfd.readouterr().err.splitlines()[0] == NOTE.format("moved/network.py")
    assert read_meta(Path("moved/checkpoints/step-00000004.h5"))["name"] == "net"
    assert sorted(p.name for p in Path("moved").glob("*.py")) == ["network.py"]


def test_what_is_not_the_runs_own_file_is_not_run(begin, capfd) -> None:
    begin()
    code = read_meta(Path("run/checkpoints/step-00000002.h5"))["code"]
    evil = "raise SystemExit('it was run')\n"
    Path("run/network.py").write_text(evil)
    Path("net.py").write_text(evil)
    capfd.readouterr()
    for what in ("run", "run/checkpoints/step-00000002.h5"):
        with pytest.raises(
            UserError,
            match=rf"layers of a class of its own, Scaled, .* network.py,"
            rf" which is not in .*/run as it was \(SHA-256 {code[:12]}…\)",
        ) as caught:
            score(what)  # fmt: skip
        assert "\n" not in str(caught.value) and caught.value.code == 2
    assert capfd.readouterr().err == ""
    Path("run/network.py").unlink()
    with pytest.raises(UserError, match="which is not in"):
        score("run")
    # a checkpoint alone, in a place where a stranger's network.py lies
    Path("else").mkdir()
    shutil.copy("run/checkpoints/step-00000002.h5", "else/mine.h5")
    Path("else/network.py").write_text(evil)
    with pytest.raises(UserError, match="which is not in .*else as it was"):
        score("else/mine.h5")
    Path("else/network-2.py").write_text(text())
    score("else/mine.h5")
    assert capfd.readouterr().err.startswith(NOTE.format(Path("else/network-2.py").absolute()))


def test_a_checkpoint_of_before_there_were_copies(begin, monkeypatch, capfd) -> None:
    begin()
    shutil.rmtree("run")
    monkeypatch.setattr("mpicnn.run.training.keep", lambda directory, source: "")
    command("--data", "a.h5", "--model", "net.py", "--batch", 8, "--run-dir", "run", "--epochs", 1,
            "--threads", 1, "--progress", "off")  # fmt: skip
    monkeypatch.setattr("mpicnn.run.training.keep", keep)
    with pytest.raises(UserError, match="knows no file of it; go on with the run, with --model"):
        score("run")
    here = Path.cwd()
    capfd.readouterr()
    resume("--epochs", 2)
    assert capfd.readouterr().err.startswith(NOTE.format(here / "net.py"))
    (here / "net.py").unlink()
    score("run")


def test_a_run_may_go_on_with_an_edited_file_of_the_same_layers(begin) -> None:
    begin()
    Path("net.py").write_text(text() + "# better\n")
    resume("--epochs", 2)
    assert not Path("run/network-2.py").exists()  # nobody named net.py
    resume("--epochs", 3, "--model", "net.py")
    assert Path("run/network.py").read_text() == text()
    assert Path("run/network-2.py").read_text() == text() + "# better\n"
    first, second = (read_meta(Path(f"run/checkpoints/step-0000000{n}.h5"))["code"] for n in (4, 6))
    assert first != second
    resume("--epochs", 4, "--model", "net.py")
    score("run", "--checkpoint", 6)
    os.remove("run/network.py")
    score("run")
    with pytest.raises(UserError, match="--model FILE.py"):
        resume("--epochs", 5, "--model", "gone.py")
    Path("net.py").write_text(text(start=0.25))
    with pytest.raises(UserError, match=r"\(own\): start 0.5 before, 0.25 now"):
        resume("--epochs", 5, "--model", "net.py")


def test_networks_of_the_packages_layers_keep_no_file(begin, capfd) -> None:
    begin("ReLU")
    assert not list(Path("run").glob("*.py"))
    assert "code" not in read_meta(Path("run/checkpoints/step-00000002.h5"))
    Path("run/network.py").write_text("raise SystemExit('it was run')\n")
    capfd.readouterr()
    score("run")
    resume("--epochs", 2)
    assert capfd.readouterr().err == ""


def test_a_file_that_makes_another_network_now(begin) -> None:
    """Its layers hang on something else than the file."""
    begin()
    source = 'import os\nSTART = float(os.environ["START"])\n' + text().replace("0.5", "START")
    Path("net.py").write_text(source)
    shutil.rmtree("run")
    os.environ["START"] = "0.5"
    try:
        command("--data", "a.h5", "--model", "net.py", "--batch", 8, "--run-dir", "run",
                "--threads", 1, "--epochs", 1, "--progress", "off")  # fmt: skip
        os.environ["START"] = "0.25"
        with pytest.raises(UserError, match=r"network.py: makes another network .*: start 0.5 bef"):
            score("run")
        with pytest.raises(UserError, match=r"start 0.5 before, 0.25 now"):
            resume("--epochs", 2)
    finally:
        del os.environ["START"]


def test_a_code_that_is_a_path_is_refused(begin) -> None:
    begin("ReLU")
    meta = read_meta(Path("run/checkpoints/step-00000002.h5"))
    check_meta(meta | {"code": "0" * 64}, "x.h5")
    for value in ("../../evil.py", "", 7, "0" * 63):
        with pytest.raises(UserError, match="code is .*, expected a SHA-256"):
            check_meta(meta | {"code": value}, "x.h5")


def test_own_layers_start_from_weights_without_their_file_and_may_be_frozen(begin, capfd) -> None:
    begin()
    os.remove("run/network.py")
    capfd.readouterr()
    command("--data", "a.h5", "--model", "net.py", "--batch", 8, "--run-dir", "next", "--init",
            "run", "--threads", 1, "--epochs", 1, "--progress", "off",
            "--freeze", "own")  # fmt: skip
    shown = capfd.readouterr()
    assert "taken  340 parameters: fc1, own, fc2" in shown.out and "runs code" not in shown.err
    score("next")


@pytest.mark.mpi
def test_on_several_ranks_each_runs_the_copy_and_one_says_so(begin, subcomm, capfd) -> None:
    comm = subcomm(2)
    begin(comm=comm)
    if comm.rank == 0:
        Path("net.py").unlink()
    comm.Barrier()
    capfd.readouterr()
    resume("--epochs", 2, comm=comm)
    evaluate.main(comm, ["evaluate", "run"])
    lines = comm.allgather(capfd.readouterr().err)
    assert [line.count("runs code from") for line in lines] == [2, 0]
    assert [line.count("the file runs") for line in lines] == [2, 2]
    comm.Barrier()
