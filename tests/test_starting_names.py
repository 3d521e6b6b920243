"""What a network takes from a checkpoint, by name and shape, and how that is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fuzz_files
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.errors import UserError
from mpicnn.layers import BatchNorm, Conv, Flatten, Linear, ReLU
from mpicnn.models import Model, freeze
from mpicnn.run.starting import Start, starting

SELF = MPI.COMM_SELF
LAYERS = (
    ("conv1", Conv(4, 3)),
    ("bn1", BatchNorm()),
    ("relu1", ReLU()),
    ("flat", Flatten()),
    ("fc2", Linear(7)),
    ("fc3", Linear(4)),
)


def choose(folder: Path, *layers: tuple[str, Any], frozen: str = "", names: str = "abcd") -> Start:
    """Return what such a network takes from a checkpoint of the network of `LAYERS`."""
    model = Model("there", (1, 8, 8), LAYERS)
    meta, arrays = fuzz_files.Checkpoints().base(folder)
    kept = {n: a for n, a in arrays.items() if not n.startswith(("params", "velocity", "buffers"))}
    assert not kept
    specs = {"params": model.param_specs(), "velocity": model.param_specs(),
             "buffers": model.buffer_specs()}  # fmt: skip
    arrays = {f"{s}/{n}": np.zeros(p.shape) for s, found in specs.items() for n, p in found.items()}
    meta |= {"model": model.describe(), "input_shape": [1, 8, 8], "image_shape": [1, 8, 8],
             "classes": list("abcd")}  # fmt: skip
    path = folder / "step-00000007.h5"
    fuzz_files.signed(path, json.dumps(meta).encode(), arrays)
    here = freeze(Model("here", (1, 8, 8), layers), frozen)
    return starting(SELF, str(path), here, names)


def test_what_is_taken_new_and_left_is_told_by_layers(tmp_path) -> None:
    start = choose(
        tmp_path, ("conv1", Conv(4, 3, bias=False)), ("bnx", BatchNorm()), ("flat", Flatten()),
        ("fc2", Linear(7)), ("more", Linear(6)), ("fc3", Linear(5)), names="abcde",
    )  # fmt: skip
    assert list(start.rows.items())[1:] == [
        ("taken", f"{36 + 7 * 144 + 7:,} parameters: conv1, fc2"),
        ("new", f"{8 + 48 + 35} parameters and running statistics: bnx, more, fc3 "
                "(4 x 7 in the file)"),
        ("left", "12 parameters and running statistics: conv1.b, bn1"),
    ]  # fmt: skip
    assert start.sources == {n: f"params/{n}" for n in ("conv1.w", "fc2.w", "fc2.b")}
    assert start.notes == []


def test_what_may_not_be_meant_is_noted(tmp_path) -> None:
    same = choose(tmp_path, *LAYERS)
    assert len(same.rows) == 2 and not same.notes
    assert same.sources["bn1.mean"] == "buffers/bn1.mean"
    (note,) = choose(tmp_path, *LAYERS, names="abdc").notes
    assert note.startswith("fc3: taken as it is, though its outputs were for other classes: a, b")
    renamed = [(name.replace("fc2", "new2"), layer) for name, layer in LAYERS]
    (note,) = choose(tmp_path, *renamed, frozen="conv1,new2").notes
    assert note == "new2: frozen, but new: will not learn anything"


def test_a_file_that_has_nothing_in_common_is_refused(tmp_path) -> None:
    with pytest.raises(
        UserError,
        match=r"init .*07.h5: has nothing in common with here: the file "
        r"has .*: conv1 … fc3 .4., here 325 parameters: other; use",
    ):
        choose(tmp_path, ("flat", Flatten()), ("other", Linear(5)))  # fmt: skip
    # nothing but a last layer of another shape
    with pytest.raises(UserError, match="has nothing in common"):
        choose(tmp_path, ("flat", Flatten()), ("fc3", Linear(4)))
