"""Images that are not those that were prepared: found by their digests, whoever looks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import mpi_jobs
import numpy as np
import pytest
from data_samples import Sample, sample
from mpi4py import MPI

from mpicnn.data import digests
from mpicnn.data.file import open_dataset
from mpicnn.data.verify import verify, verify_sample
from mpicnn.errors import UserError

SHAPE = (3, 5, 4)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Write a file of many blocks: three images in each, the last with two."""
    monkeypatch.setattr(digests, "DIGEST_BYTES", 200)
    return sample(tmp_path / "data.h5", train=23, test=5, shape=SHAPE)


def change(path: Path, split: str, image: int) -> None:
    """Change one value of one image, as a stray program or a bad disk does."""
    with h5py.File(path, "r+") as file:
        file[f"{split}/images"][image, 1, 2, 3] ^= 16


@pytest.mark.parametrize("pieces", [[23], [1] * 23, [2, 4, 8, 9], [0, 3, 20]])
def test_digests_are_of_blocks_however_the_images_come(
    pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "DIGEST_BYTES", 200)
    images = np.random.default_rng(3).integers(0, 256, (23, *SHAPE), np.uint8)
    hasher, found, at = digests.BlockHasher(SHAPE), [], 0
    for count in pieces:
        found += hasher.add(images[at : at + count])
        at += count
    found += hasher.rest()
    blocks = [images[lo : lo + 3].tobytes() for lo in range(0, 23, 3)]
    assert found == [hashlib.sha256(block).digest() for block in blocks]


def test_every_changed_image_is_found_and_its_block_named(made: Sample) -> None:
    for split, count in (("train", 23), ("test", 5)):
        for image in range(count):
            change(made.path, split, image)
            lo = image // 3 * 3
            where = f"/{split}/images: changed .* image {lo} and {min(lo + 2, count - 1)}:"
            with open_dataset(made.path) as data, pytest.raises(UserError, match=where):
                verify(MPI.COMM_SELF, data)
            change(made.path, split, image)  # and back
    with open_dataset(made.path) as data:
        assert verify(MPI.COMM_SELF, data)


def test_ranks_sample_other_blocks_and_all_of_them_together(made: Sample) -> None:
    with open_dataset(made.path) as data:
        verify_sample(MPI.COMM_SELF, data)
        split = data.split("train")
        each = [digests.sample(split, rank) for rank in range(4)]
        assert all(1 < len(blocks) <= digests.SAMPLED for blocks in each)
        assert set().union(*each) == set(range(8))
    change(made.path, "train", 3 * each[0][0])
    with open_dataset(made.path) as data, pytest.raises(UserError, match="changed or damaged"):
        verify_sample(MPI.COMM_SELF, data)


def test_compressed_images_are_not_sampled_but_verified(tmp_path: Path) -> None:
    made = sample(tmp_path / "packed.h5", gzip=1)
    with open_dataset(made.path) as data:
        assert digests.sample(data.split("train"), 0) == []
        assert verify(MPI.COMM_SELF, data)


@pytest.mark.limit(60)
def test_the_command_says_what_it_checked_or_which_images_are_wrong(tmp_path: Path) -> None:
    path = sample(tmp_path / "data.h5").path
    for ranks in (0, 3):
        job = mpi_jobs.run(ranks, "-m", "mpicnn.data", "verify", path)
        assert job.code == 0, job.err
        assert job.out.startswith(f"{path}: all 28 images are as they were prepared, digest ")
    change(path, "test", 4)
    job = mpi_jobs.run(3, "-m", "mpicnn.data", "verify", path)
    assert job.code == 2 and "/test/images: changed or damaged between image 0 and 4" in job.err
    with h5py.File(path, "r+") as file:
        del file["test/sha256"]
    job = mpi_jobs.run(0, "-m", "mpicnn.data", "verify", path)
    assert job.code == 2 and "has no digests of its images" in job.err


@pytest.mark.limit(60)
def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """A file of the same length and digests, written again: all of it is read before it is used.

    Compressed, so that no rank samples it at the start.
    """
    path = sample(tmp_path / "data.h5", shape=(1, 12, 12), gzip=1).path
    run = ("-m", "mpicnn.train", "--data", path, "--batch", 8, "--run-dir", tmp_path / "run")
    assert mpi_jobs.run(2, *run, "--epochs", 1).code == 0
    with h5py.File(path, "r+") as file:
        images = file["test/images"][()]
        images[4] ^= 16
        file["test/images"][...] = images
    job = mpi_jobs.run(2, *run, "--resume", "--epochs", 2)
    assert job.code == 2 and "/test/images: changed or damaged between image 0" in job.err
    with h5py.File(path, "r+") as file:
        images[4] ^= 16
        file["test/images"][...] = images
    job = mpi_jobs.run(2, *run, "--resume", "--epochs", 2)
    assert job.code == 0, job.err
