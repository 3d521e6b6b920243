"""Score logits on a GPU, one block for every example."""

from __future__ import annotations

import cupy
import numpy as np
from numpy.typing import NDArray

from mpicnn.ops._cuda_arrays import Array, blocks, cells, launch


def softmax_xent(logits: Array, labels: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the cross-entropy of every example (n,) and its gradient by the logits (n, classes).

    The gradient, softmax - onehot, is not divided by anything. Raises ValueError for a label
    outside 0 … classes - 1.
    """
    losses = cupy.empty(len(logits), logits.dtype)
    dlogits = cupy.empty(logits.shape, logits.dtype)
    places = _places(logits, labels)
    if losses.size:
        _launch_rows("softmax_xent", logits, places, losses, dlogits, *logits.shape)
    return losses, dlogits


def topk_correct(logits: Array, labels: NDArray[np.int64], k: int) -> Array:
    """Return how many labels have fewer than k other logits that are not below theirs.

    Ties, and NaN, count against the network. The number is an int64 array () on the GPU. Raises
    ValueError for a label outside 0 … classes - 1.
    """
    places = _places(logits, labels)
    n = len(logits)
    if n == 0:
        return cupy.zeros((), np.int64)
    correct, total = cupy.empty(n, np.int64), cupy.empty((), np.int64)
    _launch_rows("topk_rows", logits, places, correct, *logits.shape, k)
    launch("count", "softmax.cu", logits.dtype, 1, 1024, correct, total, n)
    return total


def _places(logits: Array, labels: NDArray[np.int64]) -> Array:
    """Return the labels on the GPU, once they are known to be places of the logits' rows."""
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"labels must have shape {logits.shape[:1]}, not {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() < logits.shape[1]:
        raise ValueError(f"labels must lie in 0 … {logits.shape[1] - 1}")
    return cupy.asarray(labels, np.int64)


def _launch_rows(name: str, logits: Array, *args: Array | int) -> None:
    """Start a kernel with a block, of whole warps, for every row of the logits."""
    n, classes = logits.shape
    threads = 32 * max(1, min(32, classes // 128))
    launch(name, "softmax.cu", logits.dtype, blocks(n, 1), threads, cells(logits), *args)
