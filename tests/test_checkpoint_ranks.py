"""Checkpoints between ranks: any division in, any other out, and one verdict for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoint_samples import META, WHOLE, assert_filled, complaint, floats, on_ranks, tensors_of
from mpi4py import MPI

from mpicnn.checkpoint import Checkpoints, Tensor, read_tensors
from mpicnn.checkpoint.file import fill

SELF = MPI.COMM_SELF

SHARES = [(1,), (1, 1), (0, 2, 1), (3, 0, 0, 1)]


@pytest.fixture(autouse=True)
def spoiled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spoil new arrays: memory freed by an earlier test may hold the very numbers expected."""
    empty = np.empty

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        array = empty(*args, **kwargs)
        array.fill(77)
        return array

    monkeypatch.setattr(np, "empty", spoiled)


@pytest.mark.parametrize("loading", SHARES, ids=str)
@pytest.mark.parametrize("saving", SHARES, ids=str)
def test_another_division_gets_the_same_arrays(
    saving: tuple[int, ...], loading: tuple[int, ...], tmp_path: Path
) -> None:
    store = Checkpoints(tmp_path, keep=2)

    def save(comm: Any) -> Path:
        return store.save(comm, tensors_of(comm.rank, saving, True), META)

    def load(comm: Any) -> None:
        tensors = tensors_of(comm.rank, loading, False)
        assert store.load(comm, tensors) == META
        assert_filled(tensors)

    assert set(on_ranks(len(saving), save)) == {tmp_path / "step-00000012.h5"}
    on_ranks(len(loading), load)


def test_the_division_leaves_no_trace_in_the_file(tmp_path: Path) -> None:
    files = set()
    for weights in SHARES:
        store = Checkpoints(tmp_path / str(len(weights)), keep=1)
        paths = on_ranks(
            len(weights),
            lambda comm, store=store, weights=weights: store.save(
                comm, tensors_of(comm.rank, weights, True), META
            ),
        )
        with h5py.File(paths[0]) as file:
            files.add(file.attrs["sha256"])
    assert len(files) == 1


@pytest.mark.mpi
def test_over_mpi(mpi_tmp_path: Path) -> None:
    comm = MPI.COMM_WORLD
    weights = tuple(r % 3 for r in range(1, comm.size + 1))
    store = Checkpoints(mpi_tmp_path / "run", keep=1)
    store.save(comm, tensors_of(comm.rank, weights, True), META)
    tensors = tensors_of(comm.rank, weights[::-1], False)
    assert store.load(comm, tensors) == META
    assert_filled(tensors)
    below_a_file = Checkpoints(mpi_tmp_path / "run" / "step-00000012.h5" / "run", keep=1)
    text = complaint(lambda: below_a_file.save(comm, tensors, META))
    assert "cannot write" in text


def test_a_block_on_several_ranks_is_sent_once(tmp_path: Path) -> None:
    """A grid of 2 x 2: the first axis holds copies, the second divides."""
    store = Checkpoints(tmp_path, keep=1)
    whole = WHOLE["velocity/fc6.w"]

    def save(comm: Any) -> Path:
        block = (slice(0, 5), slice(0, 4) if comm.rank % 2 == 0 else slice(4, 11))
        return store.save(
            comm, {"velocity/fc6.w": Tensor((5, 11), whole.dtype, block, whole[block])}, META
        )

    path = on_ranks(4, save)[0]
    assert np.array_equal(read_tensors(path)["velocity/fc6.w"], whole)


@pytest.mark.parametrize(
    "bounds", [((0, 3), (4, 7)), ((0, 4), (3, 7)), ((0, 4), (3, 6)), ((0, 3), (3, 6))], ids=str
)
def test_blocks_that_do_not_fit_together(bounds: Any, tmp_path: Path) -> None:
    def save(comm: Any) -> str:
        lo, hi = bounds[comm.rank]
        tensors = {"params/b": Tensor((7,), np.dtype("f4"), (slice(lo, hi),), floats(hi - lo))}
        return complaint(lambda: Checkpoints(tmp_path, 1).save(comm, tensors, META), ValueError)

    assert all("params/b" in text for text in on_ranks(2, save))
    assert list(tmp_path.iterdir()) == []


def test_ranks_with_unlike_tensors(tmp_path: Path) -> None:
    def save(comm: Any) -> str:
        tensors = tensors_of(0, (1,), True)
        if comm.rank == 1:
            del tensors["params/conv1.b"]
        return complaint(lambda: Checkpoints(tmp_path, 1).save(comm, tensors, META))

    assert all("differs between rank 0 and rank(s) 1 of 3" in text for text in on_ranks(3, save))


def test_a_file_that_one_rank_does_not_see_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path, keep=1)
    on_ranks(1, lambda comm: store.save(comm, tensors_of(0, (1,), True), META))
    tensors = [tensors_of(rank, (1, 1, 1), False) for rank in range(3)]

    def fill_elsewhere(path: Path, digest: str, mine: dict[str, Tensor]) -> None:
        fill(tmp_path / "elsewhere.h5" if mine is tensors[2] else path, digest, mine)

    monkeypatch.setattr("mpicnn.checkpoint.store.fill", fill_elsewhere)
    texts = on_ranks(3, lambda comm: complaint(lambda: store.load(comm, tensors[comm.rank])))
    assert len(set(texts)) == 1
    assert texts[0].startswith(f"rank 2: {tmp_path}/elsewhere.h5: not a whole checkpoint: ")


def test_a_directory_that_cannot_be_made_ends_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Checkpoints(tmp_path / "file" / "run", keep=1)
    texts = on_ranks(
        3,
        lambda comm: complaint(
            lambda: store.save(comm, tensors_of(comm.rank, (1, 1, 1), True), META)
        ),
    )
    assert len(set(texts)) == 1
    assert "cannot write" in texts[0]


def test_another_network_is_refused(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=1)
    store.save(SELF, tensors_of(0, (1,), True), META)

    def load(comm: Any) -> str:
        tensors = tensors_of(0, (1,), False)
        del tensors["params/conv1.b"]
        tensors["params/conv2.b"] = Tensor((1,), np.dtype("f4"), (slice(0, 1),), floats(1))
        tensors["params/conv1.w"] = tensors["velocity/fc6.w"]
        text = complaint(lambda: store.load(comm, tensors))
        assert (tensors["velocity/fc6.w"].array == 99).all()
        return text

    texts = on_ranks(2, load)
    assert texts[0] == texts[1]
    for part in (
        "params/conv1.b: float32 (7,) in the file, nothing in this run",
        "params/conv1.w: float32 (7, 3, 2, 5) in the file, float32 (5, 11) in this run",
        "params/conv2.b: nothing in the file, float32 (1,) in this run",
    ):
        assert part in texts[0]
    assert "fc6" not in texts[0]
    text = complaint(lambda: store.load(SELF, {}))
    assert "and 1 more" in text
    assert "velocity" not in text
