"""Runs start with the weights of an earlier run: by name and shape, on any ranks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import sample
from mpi4py import MPI

from mpicnn.checkpoint import read_meta, read_tensors
from mpicnn.commands import train
from mpicnn.data.write import writing
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals

SELF = MPI.COMM_SELF
NETWORK = """
from mpicnn.layers import BatchNorm, Conv, Flatten, Linear, ReLU
def model(input_shape, classes):
    return [("conv1", Conv(4, 3, bias=False)), ("bn1", BatchNorm()), ("relu1", ReLU()),
            ("flat", Flatten()), ("fc2", Linear(7)), ("relu2", ReLU()), ("fc3", Linear(classes))]
"""
OPTIONS = ("--batch", 8, "--precision", "float64", "--threads", 1, "--progress", "off", "--model",
           "net.py", "--epochs", 1)  # fmt: skip


def other_classes(path: Path, count: int = 5, shape: tuple[int, ...] = (1, 12, 12)) -> None:
    """Write another data set, of other classes."""
    rng = np.random.default_rng(3)
    labels = {"train": np.arange(20) % count, "test": np.arange(8) % count}
    names = [f"class {n}" for n in range(count)]
    with writing(path, names, shape, labels, None) as writer:
        for split, found in labels.items():
            writer.append(split, rng.integers(0, 256, (len(found), *shape), np.uint8))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train on the ranks of `comm` in a directory with a network and two data sets."""

    def run(comm: Any, *arguments: Any) -> Path:
        where = Path(comm.bcast(str(tmp_path)))
        monkeypatch.chdir(where)
        if comm.rank == 0 and not Path("a.h5").exists():
            sample(Path("a.h5"), train=24, test=8, shape=(1, 12, 12), validation=8)
            other_classes(Path("b.h5"))
            Path("net.py").write_text(NETWORK)
        comm.Barrier()
        with Signals() as signals:
            train.main(comm, ["train", *map(str, (*OPTIONS, *arguments))], signals)
        return where

    return run


def first(*more: Any) -> tuple[Any, ...]:
    return ("--data", "a.h5", "--run-dir", "first", *more)


def second(*more: Any) -> tuple[Any, ...]:
    return ("--data", "b.h5", "--init", "first", "--run-dir", "second", *more)


def final(run: str | Path) -> dict[str, Any]:
    return read_tensors(max(Path(run, "checkpoints").glob("step-*.h5")))


FROZEN = ("--freeze", "conv1,bn1,fc2")


def test_a_new_last_layer_on_other_data(command, capfd) -> None:
    command(SELF, *first("--epochs", 2))
    capfd.readouterr()
    command(SELF, *second(*FROZEN))
    shown = capfd.readouterr().out
    best = read_tensors(Path("first/checkpoints/best.h5"))
    found = final("second")
    assert best["params/fc3.w"].shape == (4, 7) and found["params/fc3.w"].shape == (5, 7)
    for name, array in found.items():
        if "/fc3" not in name:
            np.testing.assert_array_equal(array, best[name])
    step = read_meta(Path("first/checkpoints/best.h5"))["step"]
    taken = 36 + 8 + 7 * 400 + 7
    for line in (
        f"  init   first/checkpoints/best.h5, step {step}",
        f"  taken  {taken:,} parameters and running statistics: conv1, bn1, fc2",
        "  new    40 parameters: fc3 (4 x 7 in the file)",
        f"  frozen {taken:,} of {taken + 40:,} parameters: conv1, bn1, fc2",
    ):
        assert f"{line}\n" in shown
        assert f"{line}\n" in Path("second/log.txt").read_text()
    assert "  left" not in shown and "note: fc3" not in shown
    assert f'init = "{Path("first").absolute()}"' in Path("second/config.toml").read_text()
    # of a run without a best checkpoint it is the newest; and a file is what it is
    Path("first/checkpoints/best.h5").unlink()
    command(SELF, *second("--run-dir", "third"))
    assert "step-00000006.h5, step 6\n" in capfd.readouterr().out
    command(SELF, *second("--run-dir", "fourth", "--init", "first/checkpoints/step-00000003.h5"))
    assert "step-00000003.h5, step 3\n" in capfd.readouterr().out


def test_the_new_layer_starts_as_without_init(command) -> None:
    """And no state of the optimiser comes along: a step of rate 0 leaves the start as it was."""
    command(SELF, *first())
    tiny = ("--rate", 1e-300, "--decay", 0)
    command(SELF, *second(*tiny))
    command(SELF, "--data", "b.h5", "--run-dir", "fresh", *tiny)
    ours, fresh, before = final("second"), final("fresh"), read_tensors(
        Path("first/checkpoints/best.h5")
    )  # fmt: skip
    for name, array in ours.items():
        if name.startswith("params/"):
            source = fresh if "/fc3" in name else before
            np.testing.assert_allclose(array, source[name], rtol=0, atol=1e-290)
        if name.startswith("velocity/"):
            assert np.abs(array).max() < 1e-290


PLANS = {
    "data": ("--shares", "3,1"),
    "sharded": ("--sync", "sharded"),
    "filter": ("--plan", "filter", "--shares", "1,3"),
    "master": ("--plan", "master-worker"),
    "fc-input": ("--plan", "fc-input", "--sync", "sharded"),
    "stages": ("--stages", "fc2", "--micro-batches", 1),
    "owner": ("--plan", "owner.toml"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("freeze", [(), ("--freeze", "conv1,bn*")], ids=["all learn", "frozen"])
@pytest.mark.parametrize("plan", PLANS)
def test_a_start_under_every_plan_equals_one_rank(command, subcomm, plan, freeze) -> None:
    comm = subcomm(2)
    command(comm, *first("--ema", 0.6))
    if comm.rank == 0:
        Path("owner.toml").write_text('[layers.conv1]\nsplit = "m@1"\n[layers.fc2]\nsplit = "m"\n')
    comm.Barrier()
    command(comm, *second("--ema", 0.5, *PLANS[plan], *freeze))
    if comm.rank == 0:
        command(SELF, *second("--ema", 0.5, "--run-dir", "alone", *freeze))
        ours, alone = final("second"), final("alone")
        assert ours.keys() == alone.keys()
        for name, array in alone.items():
            # float64, three steps of sums in another order
            error = np.linalg.norm(ours[name] - array)
            assert error <= 1e-12 * max(1.0, np.linalg.norm(array)), name
    comm.Barrier()


def test_the_mean_is_taken_where_one_was_kept(command, capfd) -> None:
    command(SELF, *first("--ema", 0.6, "--freeze", "conv1"))
    capfd.readouterr()
    command(SELF, *second("--freeze", "conv1,fc2,bn1", "--precision", "float32"))
    assert ", step 3 (mean of the weights, ema 0.6)\n" in capfd.readouterr().out
    before, ours = read_tensors(Path("first/checkpoints/best.h5")), final("second")
    assert "ema/conv1.w" not in before
    for name in ("fc2.w", "fc2.b", "bn1.gamma"):
        assert not np.array_equal(before[f"ema/{name}"], before[f"params/{name}"])
        np.testing.assert_array_equal(
            ours[f"params/{name}"], before[f"ema/{name}"].astype(np.float32)
        )
    np.testing.assert_array_equal(
        ours["buffers/bn1.mean"], before["ema/bn1.mean"].astype(np.float32)
    )
    np.testing.assert_array_equal(
        ours["params/conv1.w"], before["params/conv1.w"].astype(np.float32)
    )
    # and the mean of the new run begins with what was taken
    command(SELF, *second("--run-dir", "third", "--ema", 0.9, "--rate", 1e-300, "--decay", 0))
    ours = final("third")
    np.testing.assert_array_equal(ours["ema/fc2.w"], before["ema/fc2.w"])


def test_where_a_run_goes_on_its_checkpoint_decides(command, capfd) -> None:
    command(SELF, *first())
    command(SELF, *second("--epochs", 1))
    command(SELF, *second("--run-dir", "whole", "--epochs", 2))
    shutil.move("first", "moved")
    capfd.readouterr()
    command(SELF, "--run-dir", "second", "--data", "b.h5", "--resume", "--epochs", 2, "--init",
            "first")  # fmt: skip
    assert "  init" not in capfd.readouterr().out
    ours, whole = final("second"), final("whole")
    for name, array in whole.items():
        np.testing.assert_array_equal(ours[name], array)
    with pytest.raises(UserError, match=r"other settings \(init: .*/first before, .*/moved now"):
        command(SELF, *second("--resume", "--epochs", 3, "--init", "moved"))
    with pytest.raises(UserError, match=r"other settings \(init: .*/first before,  now"):
        command(SELF, *second("--resume", "--epochs", 3, "--init", ""))
    # there is no checkpoint to go on with: the run begins, as it did
    shutil.rmtree("second/checkpoints")
    with pytest.raises(UserError, match="first: no such file"):
        command(SELF, *second("--resume", "--epochs", 2))
    shutil.move("moved", "first")
    command(SELF, *second("--resume", "--epochs", 2))
    ours = final("second")
    for name, array in whole.items():
        np.testing.assert_array_equal(ours[name], array)


def test_bad_starts_are_refused_in_one_line_before_anything_is_made(command, tmp_path) -> None:
    command(SELF, *first())
    good = Path("first/checkpoints/step-00000003.h5").absolute()
    other_classes(Path("gray.h5"), shape=(3, 12, 12))
    Path("empty").mkdir()
    Path("text.h5").write_text("nothing")
    damaged = bytearray(good.read_bytes())
    damaged[damaged.index(read_tensors(good)["params/fc2.w"].tobytes()) + 50] ^= 1
    Path("damaged.h5").write_bytes(damaged)
    Path("short.h5").write_bytes(good.read_bytes()[:-1000])
    shutil.copytree("first", "allbad")
    for each in Path("allbad/checkpoints").iterdir():
        each.write_bytes(each.read_bytes()[:-1000])
    for init, message in {
        "nowhere": "init nowhere: no such file; expected a run directory or a checkpoint",
        "empty": "init: checkpoint empty: nothing to load; expected a run directory",
        "a.h5": r"init: a.h5: not a whole checkpoint: .*; expected a run directory or one of its",
        "text.h5": "init: text.h5: not a whole checkpoint",
        "damaged.h5": r"init: damaged.h5: not a whole checkpoint: params/fc2.w is damaged",
        "short.h5": "init: short.h5: not a whole checkpoint",
        "allbad": "init: no checkpoint can be used: ",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            command(SELF, *second("--init", init))
        assert "\n" not in str(caught.value) and caught.value.code == 2
    with pytest.raises(
        UserError,
        match=r"conv1.w is 4 x 1 x 3 x 3 in the file, 4 x 3 x 3 x 3 in "
        r"net; images are 1 x 12 x 12 there, 3 x 12 x 12 here; only .*, fc3, may",
    ):
        command(SELF, *second("--data", "gray.h5"))  # fmt: skip
    with pytest.raises(UserError, match=r"fc2.w is 7 x 400 .*, 7 x 256 in net; images are"):
        command(SELF, *second("--crop", 10))
    assert not Path("second").exists()


def test_a_damaged_best_checkpoint_is_passed_over(command, capfd) -> None:
    command(SELF, *first())
    path = Path("first/checkpoints/best.h5")
    path.write_bytes(path.read_bytes()[:-1000])
    capfd.readouterr()
    command(SELF, *second())
    shown = capfd.readouterr()
    assert "best.h5: not a whole checkpoint" in shown.err and "passed over" in shown.err
    assert "step-00000003.h5, step 3" in shown.out
