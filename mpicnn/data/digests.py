"""Digests of a split's images in blocks: a part can be checked, and ranks can share the whole."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.data.layout import DIGEST_BYTES, Array, ImageShape
from mpicnn.data.store import Contiguous
from mpicnn.errors import UserError

if TYPE_CHECKING:
    from mpicnn.data.file import Split

SAMPLED = 4
"""How many blocks of a split a rank checks where all of it would take too long."""

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Digests:
    """Hold the SHA-256 of every block of `rows` images: uint8 (blocks, 32)."""

    rows: int
    values: Array


def block_rows(shape: ImageShape) -> int:
    """Return how many images of `shape` (c, h, w) make a block of about 1 MiB."""
    return max(1, DIGEST_BYTES // math.prod(shape))


class BlockHasher:
    """Take images in order, in pieces of any size, and yield the digests of their blocks."""

    def __init__(self, shape: ImageShape) -> None:
        self.rows = block_rows(shape)
        self._sum, self._count = hashlib.sha256(), 0

    def add(self, images: Array) -> Iterator[bytes]:
        """Take the next images, uint8 (n, c, h, w); yield the digest of each block now full."""
        while len(images):
            part = images[: self.rows - self._count]
            images = images[len(part) :]
            self._sum.update(np.ascontiguousarray(part).data)
            self._count += len(part)
            if self._count == self.rows:
                yield from self.rest()

    def rest(self) -> Iterator[bytes]:
        """Yield the digest of the last block, if it is not full."""
        if self._count:
            yield self._sum.digest()
            self._sum, self._count = hashlib.sha256(), 0


def sample(split: Split, rank: int) -> list[int]:
    """Return the few blocks of a split that a rank checks: spread evenly, others for each rank.

    None without digests, and none of compressed images: these have checksums of their own, and to
    read one is to unpack them all.
    """
    if split.digests is None or not isinstance(split.store, Contiguous):
        return []
    count = len(split.digests.values)
    # Multiples of the golden ratio, modulo 1, are spread evenly however many there are.
    turns = (1 + rank * SAMPLED + np.arange(SAMPLED)) * GOLDEN % 1
    return sorted({int(at) for at in turns * count})


def check_blocks(split: Split, blocks: Iterable[int]) -> None:
    """Raise UserError, naming the first images that are not as when their digests were taken."""
    digests = split.digests
    for block in blocks:
        assert digests is not None, "blocks are of digests"
        lo = block * digests.rows
        hi = min(lo + digests.rows, len(split))
        images = split.read(np.arange(lo, hi))
        if hashlib.sha256(images.data).digest() != digests.values[block].tobytes():
            raise UserError(
                f"{split.path}: /{split.name}/images: changed or damaged between image {lo} and "
                f"{hi - 1}: they are not those that /{split.name}/sha256 was made of; "
                "make the file anew with 'python -m mpicnn.data prepare'"
            )
