"""`mpicnn export` and `mpicnn import`: runs out, networks in, and what is trained on from them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpi_jobs
import numpy as np
import pytest
from data_samples import sample
from exchange_cases import error, run
from mpi4py import MPI

import mpicnn
from mpicnn.checkpoint import read_meta, read_tensors
from mpicnn.commands import evaluate, export, train
from mpicnn.data.write import writing
from mpicnn.errors import UserError
from mpicnn.job.signals import Signals

import_ = importlib.import_module("mpicnn.commands.import_")
SELF = MPI.COMM_SELF
SHAPE = (3, 12, 11)
NETWORK = """
from mpicnn.layers import *
def model(input_shape, classes):
    return [("conv1", Conv(6, 3, bias=False)), ("bn1", BatchNorm()), ("relu1", ReLU()),
            ("conv2", Conv(6, 3, padding=1)), ("silu2", SiLU()),
            ("add2", Add(), ("relu1", "silu2")),
            ("pool2", MaxPool(3, 2, ceil_mode=True)), ("flat", Flatten()), ("fc3", Linear(classes))]
"""


def trained(root: Path, *more: Any) -> Path:
    """Return the directory of a short run on images beside it."""
    sample(root / "data.h5", train=24, test=8, shape=SHAPE)
    (root / "net.py").write_text(NETWORK)
    words = (
        "--model", root / "net.py", "--data", root / "data.h5", "--batch", 8, "--epochs", 1,
        "--run-dir", root / "run", "--progress", "off", "--threads", 1, *more,
    )  # fmt: skip
    train.main(SELF, ["train", *map(str, words)], Signals())
    return root / "run"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("first"))


def exported(*words: Any) -> None:
    export.main(SELF, ["export", *map(str, words)])


def imported(*words: Any) -> None:
    import_.main(SELF, ["import", *map(str, words)])


def probabilities(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("ema", [0, 0.5])
def test_what_is_exported_answers_as_the_run_does(
    precision: str, ema: float, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    directory = trained(tmp_path, "--precision", precision, "--ema", ema)
    pixels = np.random.default_rng(5).integers(0, 256, (8, *SHAPE), np.uint8)
    expected = mpicnn.load(directory, comm=SELF).predict(pixels)
    exported(directory, tmp_path / "net.onnx", "--normalise")
    assert error(probabilities(run(tmp_path / "net.onnx", pixels)), expected) < 1e-5


@pytest.mark.parametrize("ending", ["onnx", "safetensors"])
def test_what_is_exported_comes_back(
    ending: str, first: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(ending, reason="pip install 'mpicnn[onnx]'")
    exported(first, tmp_path / f"net.{ending}")
    imported(tmp_path / f"net.{ending}", tmp_path / "back")
    before, after = (
        sorted(d.glob("checkpoints/step-*.h5"))[-1] for d in (first, tmp_path / "back")
    )
    ours, theirs = read_meta(before), read_meta(after)
    for entry in ("model", "input_shape", "classes", "mean", "std", "name"):
        assert ours[entry] == theirs[entry], entry
    held = read_tensors(before, {"params", "buffers"})
    again = read_tensors(after, {"params", "buffers"})
    assert held.keys() == again.keys()
    for name, array in held.items():
        np.testing.assert_array_equal(array, again[name])
    capfd.readouterr()
    for directory in (first, tmp_path / "back"):
        words = ["evaluate", str(directory), "--data", str(first.parent / "data.h5")]
        evaluate.main(SELF, [*words, "--threads", "1"])
    scores = [line for line in capfd.readouterr().out.splitlines() if line.startswith("test:")]
    assert len({score.partition("%, ")[0] for score in scores}) == 1


def test_an_imported_network_has_no_data_of_its_own(first: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    exported(first, tmp_path / "net.safetensors")
    imported(tmp_path / "net.safetensors", tmp_path / "theirs")
    with pytest.raises(UserError, match="was imported, .* give --data FILE.h5"):
        evaluate.main(SELF, ["evaluate", str(tmp_path / "theirs"), "--threads", "1"])


def test_training_goes_on_with_an_imported_network(first: Path, tmp_path: Path) -> None:
    """For other classes: all layers but the last start with its weights."""
    pytest.importorskip("safetensors")
    exported(first, tmp_path / "net.safetensors")
    imported(tmp_path / "net.safetensors", tmp_path / "theirs")
    network = tmp_path / "theirs" / "network.toml"
    assert network.read_text().count('o = "classes"') == 1
    rng, labels = np.random.default_rng(3), {"train": np.arange(16) % 5, "test": np.arange(8) % 5}
    with writing(tmp_path / "other.h5", ["u", "v", "w", "x", "y"], SHAPE, labels, None) as writer:
        for split, found in labels.items():
            writer.append(split, rng.integers(0, 256, (len(found), *SHAPE), np.uint8))
    words = (
        "--model", network, "--init", tmp_path / "theirs", "--data", tmp_path / "other.h5",
        "--batch", 8, "--epochs", 0.5, "--freeze", "conv*,bn1", "--threads", 1,
        "--run-dir", tmp_path / "run", "--progress", "off",
    )  # fmt: skip
    train.main(SELF, ["train", *map(str, words)], Signals())
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "conv1, bn1, conv2" in next(line for line in log.splitlines() if "taken" in line)
    last = sorted((tmp_path / "run").glob("checkpoints/step-*.h5"))[-1]
    before = sorted((tmp_path / "theirs").glob("checkpoints/step-*.h5"))[-1]
    new, old = read_tensors(last, {"params"}), read_tensors(before, {"params"})
    np.testing.assert_array_equal(new["params/conv1.w"], old["params/conv1.w"])
    assert new["params/fc3.w"].shape[0] == 5


def test_what_the_file_does_not_say_is_given(first: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    numpy = importlib.import_module("safetensors.numpy")
    exported(first, tmp_path / "full.safetensors")
    arrays = numpy.load_file(tmp_path / "full.safetensors")
    bare = tmp_path / "bare.safetensors"
    numpy.save_file(arrays, bare)
    names = tmp_path / "names.txt"
    count = arrays["fc3.w"].shape[0]
    names.write_text("".join(f"kind {n}\n" for n in range(count)))
    net = ("--model", first.parent / "net.py", "--input", "3x12x11")
    given = ("--mean", "1,2,3", "--std", "4,5,6", "--class-names", names)
    imported(bare, tmp_path / "given", *net, *given)
    meta = read_meta(tmp_path / "given" / "checkpoints" / "step-00000000.h5")
    assert (meta["mean"], meta["std"]) == ([1, 2, 3], [4, 5, 6])
    assert meta["classes"] == [f"kind {n}" for n in range(count)]
    imported(bare, tmp_path / "assumed", *net)
    meta = read_meta(tmp_path / "assumed" / "checkpoints" / "step-00000000.h5")
    assert meta["mean"] == [123.675, 116.28, 103.53]
    assert meta["classes"] == [str(n) for n in range(count)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("bare.safetensors", "out"), "holds weights and no network: give one by --model"),
        (("bare.safetensors", "out", "--model", "lenet5"), "has arrays of 4 layers, lenet5 has 5"),
        (("bare.safetensors", "out", "--model", "net.py"), "by --input CxHxW"),
        (("bare.safetensors", "out", "--model", "net.py", "--input", "3x9x9"), "fc3.w is "),
        (("bare.safetensors", "run", "--model", "net.py"), "run: is the directory of a run"),
        (("bare.safetensors", "full", "--model", "net.py"), "full: is not empty"),
        (("bare.safetensors", "net.py"), "net.py: is a file; expected a directory"),
        (("damaged.safetensors", "out"), "not a valid safetensors file"),
        (("none.safetensors", "out"), "none.safetensors: no such file"),
        (("net.py", "out"), "expected a name that ends in .onnx, .safetensors, .pt or .pth"),
        (("a.onnx", "out", "--model", "lenet5"), "an ONNX file holds its network"),
        (("full.safetensors", "out", "--mean", "1,2,3"), "mean and std: give both"),
        (("full.safetensors", "out", "--mean", "1", "--std", "1"), "images have 3 channels"),
        (("full.safetensors", "out", "--class-names", "one.txt"), "1 names, but the network has"),
        (("full.safetensors", "out", "--std", "0,1,1"), "numbers above 0"),
    ],
)
def test_imports_that_are_refused(
    words: tuple[str, ...], expected: str, first: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip("safetensors")
    numpy = importlib.import_module("safetensors.numpy")
    monkeypatch.chdir(tmp_path)
    exported(first, "full.safetensors")
    numpy.save_file(numpy.load_file("full.safetensors"), "bare.safetensors")
    Path("damaged.safetensors").write_bytes(Path("bare.safetensors").read_bytes()[:-40])
    Path("net.py").write_text(NETWORK)
    Path("one.txt").write_text("one\n")
    Path("full").mkdir()
    Path("full/file").touch()
    Path("run").symlink_to(first)
    with pytest.raises(UserError) as caught:
        imported(*words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("net.pb",), "expected a name that ends in .onnx or .safetensors"),
        (("net.safetensors", "--normalise"), "give FILE.onnx"),
        (("there.onnx",), "there.onnx: exists; give --overwrite"),
        (("no/net.onnx",), "no such directory"),
        (("net.onnx", "--checkpoint", "77"), "no such checkpoint"),
    ],
)
def test_exports_that_are_refused(
    words: tuple[str, ...], expected: str, first: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").touch()
    with pytest.raises(UserError) as caught:
        exported(first, *words)
    assert expected in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]


def test_a_description_that_is_damaged_is_refused(first: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    numpy = importlib.import_module("safetensors.numpy")
    exported(first, tmp_path / "full.safetensors")
    arrays = numpy.load_file(tmp_path / "full.safetensors")
    for said in ("[]", "{}", "{", json.dumps({"name": 3, "input_shape": 1, "layers": 2})):
        numpy.save_file(arrays, tmp_path / "bad.safetensors", {"network": said})
        with pytest.raises(UserError, match="its description of the network is damaged"):
            imported(tmp_path / "bad.safetensors", tmp_path / "out")


def test_the_console_starts_both(first: Path, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    console: Callable[..., Any] = mpi_jobs.run
    file = tmp_path / "net.safetensors"
    job = console(2, "-m", "mpicnn.export", first, file)
    assert job.code == 0, job.err
    assert job.out.startswith(f"{file}: ")
    job = console(0, "-m", "mpicnn.import", file, tmp_path / "out")
    assert job.code == 0, job.err
    assert f"--model {tmp_path / 'out' / 'network.toml'}" in job.out
    job = console(2, "-m", "mpicnn.import", file, tmp_path / "out")
    assert job.code == 2
    assert job.err.count("\n") == 1
