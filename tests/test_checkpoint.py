"""Checkpoints of one process: what is in the files, which are kept, which are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoint_samples import META, WHOLE, assert_filled, complaint, floats, tensors_of
from mpi4py import MPI

from mpicnn.checkpoint import Checkpoints, Tensor, read_meta, read_tensors
from mpicnn.checkpoint.file import fill

SELF = MPI.COMM_SELF


def test_a_given_file_is_loaded(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    path = store.save(SELF, tensors_of(0, (1,), True), META)
    tensors = tensors_of(0, (1,), False)
    assert store.load(SELF, tensors, path) == META
    assert_filled(tensors)


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    tensors = tensors_of(0, (1,), True)

    def steps() -> list[int]:
        return [read_meta(path)["step"] for path in store.paths()]

    for step in (9, 10, 100_000_000, 99_999_999):
        store.save(SELF, tensors, {"step": step})
    # The step saved last is not the newest; what lies ahead of it is not its to remove.
    assert steps() == [100_000_000, 99_999_999, 10]
    store.save(SELF, tensors, {"step": 100_000_001})
    assert steps() == [100_000_001, 100_000_000]
    assert store.newest() == tmp_path / "step-100000001.h5"
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for attempt in (1, 2):
        store.save(SELF, tensors_of(0, (1,), True), META | {"attempt": attempt})
    assert [read_meta(path)["attempt"] for path in store.paths()] == [2]


def test_another_number_type_is_refused(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(SELF, tensors_of(0, (1,), True), META)
    tensors = tensors_of(0, (1,), False)
    tensors["params/conv1.b"] = Tensor((7,), np.dtype("f8"), (slice(0, 7),), np.zeros(7))
    text = complaint(lambda: store.load(SELF, tensors))
    assert "params/conv1.b: float32 (7,) in the file, float64 (7,) in this run" in text


def test_only_the_checked_file_is_read(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(SELF, tensors_of(0, (1,), True), META)
    tensors = tensors_of(0, (1,), False)
    assert "not the file" in complaint(lambda: fill(path, "0" * 64, tensors))


def test_reading_sections_without_a_run(tmp_path: Path) -> None:
    meta = META | {"metrics": list(range(30_000)), "loss": float("inf")}
    path = Checkpoints(tmp_path, keep=1).save(SELF, tensors_of(0, (1,), True), meta)
    assert read_meta(path) == meta
    assert read_tensors(path).keys() == WHOLE.keys()
    params = read_tensors(path, ["params", "buffers"])
    assert params.keys() == WHOLE.keys() - {"velocity/fc6.w"}
    assert all(a.tobytes() == WHOLE[name].tobytes() for name, a in params.items())


def test_the_file_is_as_documented(tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, keep=1).save(SELF, tensors_of(0, (1,), True), META)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"mpicnn checkpoint 1"
        text = file["meta"][()]
        assert json.loads(text) == META
        lines = ""
        for name in sorted(WHOLE):
            data = file[name][()]
            head = f"{data.dtype.str} {'x'.join(str(n) for n in data.shape)}\n".encode()
            digest = hashlib.sha256(head + data.tobytes()).hexdigest()
            assert file[name].attrs["sha256"] == digest.encode()
            lines += f"{name} {digest}\n"
        whole = b"mpicnn checkpoint 1\n" + text + b"\n" + lines.encode()
        assert file.attrs["sha256"] == hashlib.sha256(whole).hexdigest().encode()


@pytest.mark.parametrize("name", ["w", "/params/w", "params/a/w", "meta/w", "params/", ""])
def test_names_have_two_parts(name: str, tmp_path: Path) -> None:
    tensors = {name: Tensor((1,), np.dtype("f4"), (slice(0, 1),), floats(1))}
    with pytest.raises(ValueError, match="section/name"):
        Checkpoints(tmp_path, keep=1).save(SELF, tensors, META)


@pytest.mark.parametrize(
    ("shape", "dtype", "lo", "hi"),
    [((7,), "f4", 0, 2), ((7,), "f8", 0, 3), ((7,), "f4", 5, 8), ((7, 1), "f4", 0, 3)],
    ids=["length", "dtype", "outside", "rank"],
)
def test_a_block_must_describe_its_array(shape: Any, dtype: str, lo: int, hi: int) -> None:
    with pytest.raises(ValueError, match=r"does not describe|zip"):
        Tensor(shape, np.dtype(dtype), (slice(lo, hi),), floats(3))
