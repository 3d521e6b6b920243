"""Initial values of parameters, drawn by counter: rows do not depend on which rank draws them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import DTypeLike

from mpicnn import rng
from mpicnn.layers.base import Param
from mpicnn.ops.interface import Array


def initial_rows(
    param: Param, seed: int, name: str, rows: tuple[int, int], dtype: DTypeLike
) -> Array:
    """Return the global rows lo … hi - 1 (of dimension 0) of a parameter's initial value.

    "he" is normal with variance 2 / fan_in (He et al. 2015, eq. 10); "xavier" is uniform with
    variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16), where fan_out is the first
    dimension times the kernel's size; a float is a normal's standard deviation; "zeros" and "ones"
    are what they say. Raises ValueError for any other name.

    `name` is the parameter's name in the whole model. Element e of row r is lane e % 4 of the
    counter (e // 4, r, 0, 0) under `rng.key(seed, "initial:" + name)`; normals are drawn in pairs
    of lanes (Box and Muller 1958).
    """
    lo, hi = rows
    shape = (hi - lo, *param.shape[1:])
    if param.init in ("zeros", "ones"):
        return np.full(shape, 1 if param.init == "ones" else 0, dtype)
    width = math.prod(param.shape[1:])
    stream = rng.key(seed, f"initial:{name}")
    quads = np.arange(-(-width // 4))
    values = np.empty((hi - lo, width), dtype)
    for part in rng.chunks(hi - lo, len(quads)):
        row = np.arange(lo + part.start, lo + part.stop)[:, None]
        drawn = _scaled(param, rng.philox4x32(quads, row, 0, 0, stream))
        values[part] = drawn.reshape(len(row), 4 * len(quads))[:, :width]
    return values.reshape(shape)


def _scaled(param: Param, words: rng.Words) -> Array:
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
