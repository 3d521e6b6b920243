"""Checkpoints made to mislead, their digests right: refused in one line before they are used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_files
import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.checkpoint import read_meta, verify
from mpicnn.checkpoint.file import FORMAT
from mpicnn.errors import UserError
from mpicnn.run import load
from mpicnn.run.directory import saved_settings
from mpicnn.run.meta import check_meta
from mpicnn.settings.command_settings import LoadSettings
from mpicnn.settings.definitions import Settings

Meta = dict[str, Any]


def loaded(path: Path) -> load.TrainedModel:
    return load.load_trained(MPI.COMM_SELF, str(path), "auto", "", LoadSettings(run="", threads=1))


def forge(folder: Path, change: Callable[[Meta, dict[str, Any]], Any]) -> Path:
    """Write a checkpoint of step 7 with meta data and arrays changed, and signed."""
    meta, arrays = fuzz_files.Checkpoints().base(folder)
    change(meta, arrays)
    path = folder / "step-00000007.h5"
    fuzz_files.signed(path, json.dumps(meta).encode(), arrays)
    return path


def entry(name: str, value: Any) -> Callable[[Meta, dict[str, Any]], None]:
    return lambda meta, _: meta.update({name: value})


def layer(at: int, **values: Any) -> Callable[[Meta, dict[str, Any]], None]:
    return lambda meta, _: meta["model"][at].update(values)


def settings(**values: Any) -> Callable[[Meta, dict[str, Any]], None]:
    return lambda meta, _: meta.update(settings=json.dumps(values))


FORGED: dict[str, tuple[Callable[[Meta, dict[str, Any]], Any], str]] = {
    "a step far away": (entry("step", 10**30), "step is 1000.*, expected a whole number from 0"),
    "another step": (entry("step", 8), "it is of step 8; expected the one that its name says"),
    "no step": (lambda meta, _: meta.pop("step"), "does not say which step"),
    "a step in words": (entry("step", "7"), "does not say which step"),
    "no plan": (lambda meta, _: meta.pop("plan"), "no plan; expected the text of a plan"),
    "an entry of another version": (entry("schedule", 1), "unknown entry 'schedule'; use the ver"),
    "epoch NaN": (entry("epoch", float("nan")), "epoch is nan, expected a number from 0"),
    "another seed": (entry("seed", 3), "seed is 3, expected 1, as in the settings"),
    "a name for terminals": (entry("name", "net\x1b[2J"), "name is .*, expected a printable text"),
    "classes for terminals": (entry("classes", ["\x1b]0;", *"bcd"]), "classes is .*printable"),
    "too few classes": (entry("classes", ["a"]), "names 1 classes, but its network has 4"),
    "a deviation of 0": (entry("std", [0]), r"std is \[0\], expected numbers above 0"),
    "means of other images": (entry("mean", [1, 2]), "mean is .*1 numbers, one for each channel"),
    "images far too large": (entry("image_shape", [1, 2**40, 1]), "image_shape is .*to 131072"),
    "images of another size": (entry("image_shape", [1, 7, 7]), "input_shape is .*images of 1 x 7"),
    "data that is a path": (entry("data", "/etc/passwd"), "data is .*64 hexadecimal digits"),
    "a plan for terminals": (entry("plan", "\x1b[2J"), "plan of the run: not valid TOML"),
    "half a plan": (entry("plan", 'scheme = "a"'), "plan of the run: no name"),
    "settings unknown": (settings(colour=1), "written by another version of mpicnn: colour"),
    "settings that cannot be": (settings(batch=-1), "batch = -1: expected a whole number"),
    "settings without an end": (entry("settings", "[" * 10**5), "settings: .*nested too deeply"),
    "a kernel that nothing holds": (layer(3, o=2 * 10**8), "its network has 200000000"),
    "arrays that are not there": (layer(0, o=2 * 10**8), "checkpoint of another network"),
    "an unknown layer": (layer(0, type="\x1b"), r"of its own, \\x1b, and .* knows no file of it"),
    "a layer of no type": (layer(0, type=[]), r"of its own, \[\], and .* knows no file of it"),
    "code that is a path": (entry("code", "/tmp/evil.py"), "code is .*, expected a SHA-256 of 64"),
    "no layers": (entry("model", []), "model is .*, expected a list of 1 to 10000 layers"),
    "many layers": (entry("model", [{}] * 10_001), "model is .*10000 layers"),
    "half an array": (
        lambda _, arrays: arrays.update({"params/linear1.b": np.ones(2, "f4")}),
        r"params/linear1.b: float32 \(2,\) in the file, float32 \(4,\) in this run",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change, said = FORGED[what]
    path = forge(tmp_path, change)
    if "expected the one" not in said:  # which is told when the arrays are loaded
        monkeypatch.setattr(load, "DistributedModel", "nothing is made before all is checked")
    with pytest.raises(UserError, match=said) as refused:
        loaded(path)
    assert path.name in str(refused.value)
    fuzz_files.check_line(refused.value)


def test_what_a_run_saves_is_accepted(tmp_path: Path) -> None:
    path = forge(tmp_path, lambda *_: None)
    assert loaded(path).classes == ("ant", "bee", "cat", "dög")
    assert saved_settings(tmp_path / "none") is None
    assert check_meta(read_meta(path), path) == Settings(model="net.toml")
    older = read_meta(path)
    del older["stamp"], older["test_due"]
    check_meta(older, path)


def test_settings_are_not_taken_from_what_is_forged(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    forge(tmp_path / "checkpoints", settings(rate=0.5))
    assert saved_settings(tmp_path) == Settings(rate=0.5)
    forge(tmp_path / "checkpoints", settings(rate="much"))
    assert saved_settings(tmp_path) is None


def test_meta_data_has_bounds(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for text, said in (
        (b'{"step": 1, "x": [' + b"{}," * 2 * 10**6, "not one text of at most 4194304 bytes"),
        (b'{"step": 1, "x": ' + b"[" * 10**5, "nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}", "thousands of digits"),
        ("é".encode(), "ascii"),
        (b"[1]", "does not say which step"),
    ):
        fuzz_files.signed(path, text, {})
        with pytest.raises(UserError, match=said):
            read_meta(path)


def test_arrays_may_not_lie_in_one_place(tmp_path: Path) -> None:
    """A thousand of them would be read a thousand times."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = np.bytes_(FORMAT)
        place = file.create_dataset("params/0", data=np.arange(1000.0)).id.get_offset()
        for n in range(1, 10):
            file.create_dataset(f"params/{n}", (1000,), "f8")  # without a place
    size = (8000).to_bytes(8, "little")
    data = path.read_bytes().replace(b"\xff" * 8 + size, place.to_bytes(8, "little") + size)
    path.write_bytes(data)
    with h5py.File(path) as file:
        assert all(file[f"params/{n}"][999] == 999 for n in range(10))
    with pytest.raises(UserError, match="its arrays share their place in the file"):
        verify(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "step-00000007.h5"
    os.mkfifo(path)
    with pytest.raises(UserError, match="not a file"):
        verify(path)
