"""Draw random numbers by counter, so that they depend on global indices and on nothing else.

Which rank asks, for which part, and in which order makes no difference: every draw is a pure
function of the seed, its purpose and the global indices of what it is for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from mpicnn.layers.base import Param

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
    for rows in _chunks(len(positions), len(quads)):
        words = philox4x32(quads, positions[rows, None], step, layer, stream)
        kept = words.reshape(words.shape[0], 4 * len(quads))[:, lanes] >= int(rate * 2**32)
        mask[rows] = kept
    mask *= 1 / (1 - rate)
    return mask


def initial(param: Param, seed: int, name: str, rows: tuple[int, int], dtype: DTypeLike) -> Array:
    """Return the global rows lo … hi - 1 (of dimension 0) of a parameter's first value.

    "he" is normal with variance 2 / fan_in (He et al. 2015, eq. 10); "xavier" is uniform with
    variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16), where fan_out is the first
    dimension times the kernel's size; a float is a normal's standard deviation; "zeros" and "ones"
    are what they say. Raises ValueError for any other name.

    `name` is the parameter's name in the whole model. Element e of row r is lane e % 4 of the
    counter (e // 4, r, 0, 0) under `key(seed, "initial:" + name)`; normals are drawn in pairs of
    lanes (Box and Muller 1958).
    """
    lo, hi = rows
    shape = (hi - lo, *param.shape[1:])
    if param.init in ("zeros", "ones"):
        return np.full(shape, 1 if param.init == "ones" else 0, dtype)
    width = math.prod(param.shape[1:])
    stream = key(seed, f"initial:{name}")
    quads = np.arange(-(-width // 4))
    values = np.empty((hi - lo, width), dtype)
    for part in _chunks(hi - lo, len(quads)):
        row = np.arange(lo + part.start, lo + part.stop)[:, None]
        drawn = _scaled(param, philox4x32(quads, row, 0, 0, stream))
        values[part] = drawn.reshape(len(row), 4 * len(quads))[:, :width]
    return values.reshape(shape)


def _scaled(param: Param, words: Words) -> Array:
    """Return words (…, 4) as values of the parameter's distribution."""
    # the middle of each of 2**32 cells: neither 0 nor 1 can occur
    uniform = (words + 0.5) / 2.0**32
    if param.init == "xavier":
        fan_out = param.shape[0] * math.prod(param.shape[2:])
        return (2 * uniform - 1) * math.sqrt(6 / (param.fan_in + fan_out))
    if param.init == "he":
        deviation = math.sqrt(2 / param.fan_in)
    elif isinstance(param.init, str):
        raise ValueError(f'init must be "he", "xavier", "zeros", "ones" or a float: {param.init}')
    else:
        deviation = param.init
    radius = deviation * np.sqrt(-2 * np.log(uniform[..., 0::2]))
    angle = 2 * np.pi * uniform[..., 1::2]
    normal = np.empty_like(uniform)
    normal[..., 0::2] = radius * np.cos(angle)
    normal[..., 1::2] = radius * np.sin(angle)
    return normal


def _chunks(rows: int, counters_per_row: int) -> Iterator[slice]:
    """Cut rows into slices of about CHUNK counters each."""
    step = max(1, CHUNK // max(1, counters_per_row))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
