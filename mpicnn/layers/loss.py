"""Compare the network's answers with the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpicnn.layers.base import Array
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Score logits (n, classes) by the cross-entropy of their softmax; labels are int64 (n,)."""

    def forward(
        self, ops: Backend, logits: Array, labels: NDArray[np.int64]
    ) -> tuple[Array, Array]:
        """Return (loss, correct at once, correct within five), and what backward needs.

        The first is float64 (3,), each summed over the local examples. An example is correct if its
        label has the largest logit, or one of the five largest; ties count against it.
        """
        there = ops.upload_labels(labels, logits.shape[1])
        losses, dlogits = ops.softmax_xent(logits, there)
        sums = ops.xp.empty(3, np.float64)
        sums[0] = losses.sum(dtype=np.float64)
        sums[1:] = ops.topk_correct(logits, there, (1, 5))
        return sums, dlogits

    def backward(self, ops: Backend, saved: Array, count: int) -> Array:
        """Return the gradient by the logits of the mean loss over all ranks' `count` examples."""
        return saved / count
