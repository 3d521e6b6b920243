"""Score logits on a GPU, one block for every example."""

from __future__ import annotations

from collections.abc import Sequence

import cupy
import numpy as np
from numpy.typing import NDArray

from mpicnn.ops._cuda_arrays import Array, blocks, cells, launch


def upload_labels(labels: NDArray[np.int64], classes: int) -> Array:
    """Return labels (n,) as `softmax_xent` and `topk_correct` take them: int64 on the GPU.

    Raises ValueError for a label outside 0 … classes - 1.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in 0 … {classes - 1}")
    return cupy.asarray(labels, np.int64)


def softmax_xent(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the cross-entropy of every example (n,) and its gradient by the logits."""
    losses = cupy.empty(len(logits), logits.dtype)
    dlogits = cupy.empty(logits.shape, logits.dtype)
    _launch_rows("softmax_xent", logits, labels, losses, dlogits)
    return losses, dlogits


def topk_correct(logits: Array, labels: Array, ks: Sequence[int]) -> Array:
    """Return, for every k, how many labels have fewer than k other logits not below theirs.

    The numbers stay on the GPU.
    """
    n = len(logits)
    ranks, counts = cupy.empty(n, np.int64), cupy.empty(len(ks), np.int64)
    _launch_rows("ranks", logits, labels, ranks)
    for at, k in enumerate(ks):
        launch("count", "softmax.cu", logits.dtype, 1, 1024, ranks, counts[at:], n, k)
    return counts


def _launch_rows(name: str, logits: Array, labels: Array, *results: Array) -> None:
    """Start a kernel with a block, of whole warps, for every row of the logits."""
    n, classes = logits.shape
    if labels.shape != (n,) or labels.dtype != np.int64:
        raise ValueError(f"labels must be int64 of shape {(n,)}, not {labels.dtype} {labels.shape}")
    if n:
        threads = 32 * max(1, min(32, classes // 128))
        args = cells(logits), cells(labels), *results, n, classes
        launch(name, "softmax.cu", logits.dtype, blocks(n, 1), threads, *args)
