"""Draw random numbers by counter, so that they depend on global indices and on nothing else.

Which rank asks, for which part, and in which order makes no difference: every draw is a pure
function of the seed, its purpose and the global indices of what it is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Array = NDArray[Any]
Words = NDArray[np.uint32]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = 0xFFFFFFFF

# counters drawn at once where the caller cuts its draws up: temporaries of 8 bytes stay in cache
CHUNK = 1 << 14


def philox4x32(
    c0: ArrayLike, c1: ArrayLike, c2: ArrayLike, c3: ArrayLike, key: tuple[int, int]
) -> Words:
    """Return the four words (…, 4) of Philox4x32-10 for counters that broadcast together.

    Counters are taken modulo 2**32. Source: Salmon, Moraes, Dror, Shaw, "Parallel random
    numbers: as easy as 1, 2, 3", SC 2011.
    """
    counters = (np.asarray(c).astype(np.uint64) & LOW for c in (c0, c1, c2, c3))
    x0, x1, x2, x3 = np.broadcast_arrays(*counters)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x1 = (p1 >> 32) ^ x1 ^ k0, p1 & LOW
        x2, x3 = (p0 >> 32) ^ x3 ^ k1, p0 & LOW
        k0, k1 = (k0 + KEY_STEPS[0]) & LOW, (k1 + KEY_STEPS[1]) & LOW
    words = np.empty((*x0.shape, 4), np.uint32)
    for lane, x in enumerate((x0, x1, x2, x3)):
        words[..., lane] = x
    return words


def key(seed: int, purpose: str) -> tuple[int, int]:
    """Return the generator's key for one purpose; unlike purposes have unrelated streams."""
    digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def draws(seed: int, purpose: str, step: int, index: NDArray[np.int64]) -> Words:
    """Return four words (len(index), 4) for every global index (at most 64 bits) at a step."""
    low, high = index & LOW, index >> 32
    return philox4x32(low, high, step & LOW, step >> 32, key(seed, purpose))


def uniform(seed: int, purpose: str, step: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the words of `draws` as numbers of the uniform distribution on [0, 1)."""
    return draws(seed, purpose, step, index) / 2**32


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of the n examples in an epoch, as indices (n,)."""
    words = draws(seed, "order", epoch, np.arange(n, dtype=np.int64)).astype(np.uint64)
    ranks = words[:, 0] << 32 | words[:, 1]
    return np.argsort(ranks, kind="stable").astype(np.int64)


def dropout_mask(
    rate: float,
    seed: int,
    layer: int,
    step: int,
    positions: NDArray[np.int64],
    features: tuple[int, int],
    dtype: DTypeLike,
) -> Array:
    """Return the mask (len(positions), hi - lo): 0 with probability `rate`, else 1 / (1 - rate).

    `positions` are places in the global batch, `features` is a half-open range lo, hi of global
    features. Feature f at position p is lane f % 4 of the counter (f // 4, p, step, layer) under
    `key(seed, "dropout")`, and is dropped where its word is below floor(rate * 2**32).
    """
    lo, hi = features
    stream = key(seed, "dropout")
    quads = np.arange(lo // 4, -(-hi // 4))
    lanes = slice(lo - lo // 4 * 4, lo - lo // 4 * 4 + hi - lo)
    mask = np.empty((len(positions), hi - lo), dtype)
    for rows in chunks(len(positions), len(quads)):
        words = philox4x32(quads, positions[rows, None], step, layer, stream)
        kept = words.reshape(words.shape[0], 4 * len(quads))[:, lanes] >= int(rate * 2**32)
        mask[rows] = kept
    mask *= 1 / (1 - rate)
    return mask


def chunks(rows: int, counters_per_row: int) -> Iterator[slice]:
    """Cut rows into slices of about CHUNK counters each, so that draws stay in the cache."""
    step = max(1, CHUNK // max(1, counters_per_row))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
