"""Compare the network's answers with the labels."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mpicnn.layers.base import Array


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Score logits (n, classes) by the cross-entropy of their softmax; labels are int64 (n,)."""

    def forward(
        self, ops: ModuleType, logits: Array, labels: NDArray[np.int64]
    ) -> tuple[float, int, int, Array]:
        """Return the loss summed over the local examples, the correct ones and what backward needs.

        An example is correct if its label has the largest logit, or one of the five largest; ties
        count against it.
        """
        losses, dlogits = ops.softmax_xent(logits, labels)
        correct1, correct5 = (ops.topk_correct(logits, labels, k) for k in (1, 5))
        return float(losses.sum(dtype=np.float64)), correct1, correct5, dlogits

    def backward(self, ops: ModuleType, saved: Array, count: int) -> Array:
        """Return the gradient by the logits of the mean loss over all ranks' `count` examples."""
        return saved / count
