"""Check that a data set's images are those that were prepared: a sample of them, or all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpicnn.data.digests import check_blocks, sample
from mpicnn.data.file import Dataset
from mpicnn.job.agreement import agree

if TYPE_CHECKING:
    from mpi4py import MPI


def verify_sample(comm: MPI.Intracomm, data: Dataset) -> None:
    """Check a few images on every rank. Collective; raises UserError where they are others."""
    for split in data.splits.values():
        agree(comm, check_blocks, split, sample(split, comm.rank))


def verify(comm: MPI.Intracomm, data: Dataset) -> bool:
    """Check all images, shared over the ranks; return whether the file has digests to do it by.

    Collective; raises UserError where an image is not as it was prepared.
    """
    for split in data.splits.values():
        count = 0 if split.digests is None else len(split.digests.values)
        agree(comm, check_blocks, split, range(comm.rank, count, comm.size))
    return all(split.digests is not None for split in data.splits.values())
