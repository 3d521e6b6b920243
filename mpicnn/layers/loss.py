"""Compare the network's answers with the labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    @property
    def size(self) -> int:
        """Return how many there are."""
        return self.own.size

    def __getitem__(self, rows: Any) -> MixedLabels:
        """Return those of some rows."""
        return MixedLabels(self.own[rows], self.other[rows], self.weight)


Labels = NDArray[np.int64] | MixedLabels


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Score logits (n, classes) by the cross-entropy of their softmax; labels are int64 (n,).

    `smoothing` of an example's target is spread equally over all classes (Szegedy et al. 2016,
    arXiv 1512.00567, section 7). `weights`, one above 0 per class, multiply what the target gives
    to a class; none: all 1. Means are as `torch.nn.CrossEntropyLoss` takes them: divided by the
    weights of the labels, for which `of` prepares.
    """

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()

    def of(self, labels: Labels) -> SoftmaxCrossEntropy:
        """Return the loss for a batch of these labels, all ranks' together.

        Its weights are scaled so that those of the labels have the mean 1: to divide by the number
        of examples is then to divide by their weights.
        """
        if not self.weights or not labels.size:
            return self
        weights = np.array(self.weights)
        if isinstance(labels, MixedLabels):
            own, other = weights[labels.own].mean(), weights[labels.other].mean()
            mean = labels.weight * own + (1 - labels.weight) * other
        else:
            mean = weights[labels].mean()
        return replace(self, weights=tuple((weights / mean).tolist()))

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
        if self.smoothing or self.weights:
            losses = self._soften(ops, logits, there, losses, dlogits)
        sums = ops.xp.empty(3, np.float64)
        sums[0] = losses.sum(dtype=np.float64)
        sums[1:] = ops.topk_correct(logits, there, (1, 5))
        return sums, dlogits

    def _soften(
        self, ops: Backend, logits: Array, labels: Array, losses: Array, dlogits: Array
    ) -> Array:
        """Return the losses of softened, weighted targets, given those of the labels alone.

        The target of label y is (1 - s) w_y onehot(y) + s / classes w, so that its loss is
        (1 - s) w_y loss + s / classes sum_c w_c (loss + z_y - z_c). `dlogits` changes accordingly.
        """
        n, classes = logits.shape
        weights = ops.upload(np.array(self.weights or (1.0,) * classes, logits.dtype))
        spread = self.smoothing / classes
        everywhere = spread * float(sum(self.weights) or classes)
        rows = ops.xp.arange(n)
        own = (1 - self.smoothing) * weights[labels] + everywhere
        below = ((logits[rows, labels][:, None] - logits) * weights).sum(axis=1)
        dlogits *= own[:, None]
        dlogits -= spread * weights
        dlogits[rows, labels] += everywhere
        return own * losses + spread * below

    def backward(self, ops: Backend, saved: Array, count: int) -> Array:
        """Return the gradient by the logits of the mean loss over all ranks' `count` examples."""
        return saved / count


PLAIN = SoftmaxCrossEntropy()
"""The loss of tests, and of training unless settings say otherwise."""
