"""Checkpoints under faults: damage, hostile files, a full disk, death while writing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn.checkpoint import Checkpoints, Tensor, read_meta, read_tensors, verify
from mpicnn.errors import UserError

SELF = MPI.COMM_SELF

W = np.arange(30, dtype=np.float32).reshape(6, 5)
B = np.arange(4, dtype=np.float64)


def tensors() -> dict[str, Tensor]:
    return {
        "params/w": Tensor(W.shape, W.dtype, (slice(0, 6), slice(0, 5)), W.copy()),
        "params/b": Tensor(B.shape, B.dtype, (slice(0, 4),), B.copy()),
    }


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, lines: list[str]) -> Checkpoints:
    """Return two saved steps, 1 and 2."""
    made = Checkpoints(tmp_path / "runs" / "1", keep=2, warn=lines.append)
    for step in (1, 2):
        made.save(SELF, tensors(), {"step": step})
    return made


def names(store: Checkpoints) -> list[str]:
    return sorted(p.name for p in store.directory.iterdir())


BOTH = ["step-00000001.h5", "step-00000002.h5"]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def place(path: Path, *members: str) -> int:
    with h5py.File(path) as file:
        return int(file["/".join(members)].id.get_offset())


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit in a tensor": (lambda p: flip(p, place(p, "params", "w") + 57), "params/w is damaged"),
    "bit in the meta data": (lambda p: flip(p, place(p, "meta") + 3), "meta data is damaged"),
    "bit in the signature": (lambda p: flip(p, 1), "signature"),
    "last byte missing": (lambda p: os.truncate(p, p.stat().st_size - 1), "truncated"),
    "half missing": (lambda p: os.truncate(p, p.stat().st_size // 2), "truncated"),
    "empty": (lambda p: os.truncate(p, 0), "signature"),
    "text": (lambda p: p.write_text("no checkpoint\n" * 999), "signature"),
    "directory": (lambda p: (p.unlink(), p.mkdir()), "step-00000002.h5"),
    "unreadable link": (lambda p: (p.unlink(), p.symlink_to("gone")), "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_passed_over(damage: str, store: Checkpoints, lines: list[str]) -> None:
    hurt, reason = DAMAGE[damage]
    old, new = store.paths()[::-1]
    hurt(new)
    assert store.newest() == old
    mine = tensors()
    mine["params/w"].array[...] = 99
    assert store.load(SELF, mine) == {"step": 1}
    assert np.array_equal(mine["params/w"].array, W)
    assert len(lines) == 2
    for part in (str(new), reason, "passed over for step-00000001.h5"):
        assert all(part in line for line in lines)
    with pytest.raises(UserError, match=new.name):
        store.load(SELF, mine, new)


def test_damage_is_seen_by_whoever_reads_it(store: Checkpoints) -> None:
    path = store.paths()[0]
    flip(path, place(path, "params", "w"))
    with pytest.raises(UserError, match="params/w is damaged"):
        read_tensors(path, ["params"])
    assert read_tensors(path, ["velocity"]) == {}
    assert read_meta(path) == {"step": 2}


def test_no_file_is_whole(store: Checkpoints, lines: list[str]) -> None:
    for path in store.paths():
        os.truncate(path, 100)
    with pytest.raises(UserError) as caught:
        store.load(SELF, tensors())
    assert all(name in str(caught.value) for name in BOTH)
    assert "\n" not in str(caught.value)
    assert lines == []


def test_no_file_at_all(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        store = Checkpoints(directory, keep=1)
        assert store.newest() is None
        with pytest.raises(UserError, match="no checkpoint here"):
            store.load(SELF, tensors())


def test_no_flipped_bit_goes_unnoticed(store: Checkpoints) -> None:
    """HDF5's own structures have checksums in the version written; the digests cover the rest.

    Every 13th byte, so that each place within aligned structures gets its turn.
    """
    path = store.paths()[0]
    whole = path.read_bytes()
    for at in range(0, len(whole), 13):
        flip(path, at)
        with pytest.raises(UserError, match="not a whole checkpoint"):
            verify(path)
        path.write_bytes(whole)


def replace(path: Path, make: Callable[[h5py.Group], Any]) -> None:
    with h5py.File(path, "r+") as file:
        del file["params/w"]
        make(file["params"])


def external(group: h5py.Group) -> None:
    secret = Path(group.file.filename).with_name("secret")
    secret.write_bytes(W.tobytes())
    group.create_dataset("w", W.shape, W.dtype, external=[(str(secret), 0, W.nbytes)])


def virtual(group: h5py.Group) -> None:
    layout = h5py.VirtualLayout(W.shape, W.dtype)
    layout[...] = h5py.VirtualSource(
        group.file.filename.replace("2.h5", "1.h5"), "params/w", W.shape
    )
    group.create_virtual_dataset("w", layout)


def soft(group: h5py.Group) -> None:
    group["v"] = W
    group["w"] = h5py.SoftLink("/params/v")


def external_link(group: h5py.Group) -> None:
    group["w"] = h5py.ExternalLink("step-00000001.h5", "params/w")


def cyclic(group: h5py.Group) -> None:
    group["w"] = group


# The first ones would give the right numbers if they were followed.
HOSTILE: dict[str, tuple[Callable[[h5py.Group], Any], str]] = {
    "external link": (external_link, "link to another place"),
    "soft link": (soft, "link to another place"),
    "external data": (external, "in one piece"),
    "virtual data": (virtual, "in one piece"),
    "compressed": (lambda g: g.create_dataset("w", data=W, compression="gzip"), "in one piece"),
    "group": (cyclic, "not a dataset"),
    "nothing stored": (lambda g: g.create_dataset("w", (2**33, 2**33), "f4"), "larger"),
    "null": (lambda g: g.create_dataset("w", data=h5py.Empty("f4")), "not expected"),
    "text": (lambda g: g.create_dataset("w", data=np.bytes_("x")), "not expected"),
    "objects": (lambda g: g.create_dataset("w", data=["x"]), "not expected"),
    "no digest": (lambda g: g.create_dataset("w", data=W), "sha256"),
    "missing": (lambda g: None, "list of contents"),
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_only_plain_data_of_the_file_itself_is_read(trick: str, store: Checkpoints) -> None:
    make, reason = HOSTILE[trick]
    path = store.paths()[0]
    replace(path, make)
    for read in (verify, read_meta, read_tensors):
        with pytest.raises(UserError, match=reason):
            read(path)


def test_another_format_is_named(store: Checkpoints) -> None:
    path = store.paths()[0]
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = np.bytes_("mpicnn checkpoint 2")
    with pytest.raises(UserError, match="'mpicnn checkpoint 2', expected 'mpicnn checkpoint 1'"):
        verify(path)


@pytest.mark.parametrize("room", [0, 1000], ids=["at once", "midway"])
def test_a_full_disk_leaves_the_older_ones(room: int, store: Checkpoints) -> None:
    before = [path.read_bytes() for path in store.paths()]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ: writing past the limit fails with EFBIG, as ENOSPC would.
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write the checkpoint: File too large"):
            store.save(SELF, tensors(), {"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(store) == BOTH
    assert [path.read_bytes() for path in store.paths()] == before


def test_a_file_that_reads_back_wrong_is_not_kept(
    store: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = store.directory / ".step-00000003.h5.part"
    monkeypatch.setattr(os, "fsync", lambda fd: flip(part, place(part, "params", "w")))
    with pytest.raises(UserError, match="params/w is damaged"):
        store.save(SELF, tensors(), {"step": 3})
    assert names(store) == BOTH


def test_an_old_file_that_cannot_be_removed_is_named(store: Checkpoints, lines: list[str]) -> None:
    path = store.paths()[-1]
    path.unlink()
    path.mkdir()
    store.save(SELF, tensors(), {"step": 3})
    assert len(lines) == 1
    assert "step-00000001.h5: cannot remove" in lines[0]
    assert store.newest() == store.directory / "step-00000003.h5"


# Without MPI: a process that a rank starts must not pose as a rank.
DIES = """
import mpi4py, os, sys, time
mpi4py.rc.initialize = False
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/helpers"]
from pathlib import Path
from checkpoint_samples import on_ranks
from test_checkpoint_faults import Checkpoints, tensors
def stop(*_):
    print("there", flush=True)
    time.sleep(60)
setattr(os, sys.argv[2], stop)
store = Checkpoints(Path(sys.argv[3]), keep=1)
on_ranks(1, lambda comm: store.save(comm, tensors(), {"step": 3}))
"""


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_killed_while_writing(point: str, store: Checkpoints) -> None:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", DIES, here, point, str(store.directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        child.send_signal(signal.SIGKILL)
    assert names(store) == [".step-00000003.h5.part", *BOTH]
    assert store.load(SELF, tensors()) == {"step": 2}
    store.save(SELF, tensors(), {"step": 4})
    assert names(store) == ["step-00000002.h5", "step-00000004.h5"]
