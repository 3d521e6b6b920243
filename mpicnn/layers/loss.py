"""Compare the network's answers with the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpicnn.layers.base import Array
from mpicnn.ops.interface import Backend


@dataclass(frozen=True)
class MixedLabels:
    """Hold two labels, int64 (n,), for images that were mixed.

    `own` counts `weight`, `other` 1 - `weight`. It is indexed as an array of labels is.
    """

    own: NDArray[np.int64]
    other: NDArray[np.int64]
    weight: float

    def __getitem__(self, rows: Any) -> MixedLabels:
        """Return those of some rows."""
        return MixedLabels(self.own[rows], self.other[rows], self.weight)


Labels = NDArray[np.int64] | MixedLabels


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Score logits (n, classes) by the cross-entropy of their softmax; labels are int64 (n,)."""

    def forward(self, ops: Backend, logits: Array, labels: Labels) -> tuple[Array, Array]:
        """Return (loss, correct at once, correct within five), and what backward needs.

        The first is float64 (3,), each summed over the local examples. An example is correct if its
        label has the largest logit, or one of the five largest; ties count against it. With mixed
        labels, everything is the weighted mean of what it is with the ones and with the others.
        """
        if isinstance(labels, MixedLabels):
            sums, saved = self.forward(ops, logits, labels.own)
            others, rest = self.forward(ops, logits, labels.other)
            w = labels.weight
            return w * sums + (1 - w) * others, w * saved + (1 - w) * rest
        there = ops.upload_labels(labels, logits.shape[1])
        losses, dlogits = ops.softmax_xent(logits, there)
        sums = ops.xp.empty(3, np.float64)
        sums[0] = losses.sum(dtype=np.float64)
        sums[1:] = ops.topk_correct(logits, there, (1, 5))
        return sums, dlogits

    def backward(self, ops: Backend, saved: Array, count: int) -> Array:
        """Return the gradient by the logits of the mean loss over all ranks' `count` examples."""
        return saved / count
