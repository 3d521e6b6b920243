"""Cut images out of a batch and normalise them on a GPU."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpicnn.ops._cuda_arrays import THREADS, Array, blocks, empty_cells, launch
from mpicnn.ops.interface import Pair


def images(
    batch: Array,
    tops: NDArray[np.int64],
    lefts: NDArray[np.int64],
    flips: NDArray[np.bool_],
    mean: NDArray[Any],
    std: NDArray[Any],
    size: Pair,
    dtype: DTypeLike,
) -> Array:
    """Return (image - mean) / std for a window of every image, as (n, c, height, width) of `dtype`.

    `batch` is (n, c, h, w) of uint8 on the GPU. Image i is cut from line tops[i] and column
    lefts[i] on, which may lie outside it: there the mean stands. It is mirrored left to right
    where flips[i] says so. `mean` and `std` are (c,) in the images' units, `size` is (height,
    width). The bits are those of `mpicnn.ops.numpy.images`.
    """
    if batch.dtype != np.uint8:
        raise ValueError(f"batch must be uint8, not {batch.dtype}")
    n, c, h, w = batch.shape
    windows = np.stack((tops, lefts, flips), dtype=np.int64, casting="unsafe")
    colors = np.stack((mean, std), dtype=dtype, casting="unsafe")
    if windows.shape != (3, n) or colors.shape != (2, c):
        raise ValueError(f"windows {windows.shape} and colors {colors.shape} for {batch.shape}")
    out = empty_cells((n, c, *size), dtype)
    if out.size:
        uploads = cupy.ascontiguousarray(batch), cupy.asarray(windows), cupy.asarray(colors)
        args = *uploads, out, *batch.shape, *size
        launch("images", "images.cu", out.dtype, blocks(n * size[0], 1), THREADS, *args)
    return out
