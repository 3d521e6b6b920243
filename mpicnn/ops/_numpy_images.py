"""Cut images out of a batch and normalise them."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn.ops.interface import Array


def images(
    batch: Array,
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    flips: NDArray[np.bool_],
    mean: Array,
    std: Array,
    size: tuple[int, int],
    dtype: DTypeLike,
) -> Array:
    """Return (image - mean) / std for a window of every image, as (n, c, height, width) of `dtype`.

    `batch` is (n, c, h, w). Image i is cut from line tops[i] and column lefts[i] on, which may lie
    outside it: there the mean stands. It is mirrored left to right where flips[i] says so. `mean`
    and `std` are (c,) in the images' units, `size` is (height, width).
    """
    n, c, h, w = batch.shape
    height, width = size
    mean, std = (np.asarray(v, dtype).reshape(c, 1, 1) for v in (mean, std))
    out = np.empty((n, c, height, width), dtype)
    if (height, width) == (h, w) and not (tops.any() or lefts.any() or flips.any()):
        out[...] = batch
    else:
        inside = (tops >= 0) & (tops + height <= h) & (lefts >= 0) & (lefts + width <= w)
        if not inside.all():
            out[...] = mean
        for image, target, top, left, flip in zip(
            batch, out, tops.tolist(), lefts.tolist(), flips.tolist(), strict=True
        ):
            bottom, right = max(top + height, 0), max(left + width, 0)
            piece = image[:, max(top, 0) : bottom, max(left, 0) : right]
            y, x = max(-top, 0), max(-left, 0)
            view = target[..., ::-1] if flip else target
            view[:, y : y + piece.shape[1], x : x + piece.shape[2]] = piece
    out -= mean
    out /= std
    return out
