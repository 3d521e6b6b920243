"""How good a network is on examples that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mpicnn.data.augment import Augment
from mpicnn.data.file import Dataset
from mpicnn.data.layout import Array, Index
from mpicnn.data.loader import Batches, Inputs, Order
from mpicnn.step.interpreter import Totals

if TYPE_CHECKING:
    from mpicnn.run.distributed import DistributedModel
    from mpicnn.step.state import State


@dataclass(frozen=True)
class Score:
    """Hold the mean loss per example, and top-1 and top-5 accuracy as fractions."""

    loss: float
    top1: float
    top5: float

    def text(self) -> str:
        """Return the score for people, accuracies in percent."""
        return f"loss {self.loss:.4f}, top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %"


@dataclass(frozen=True)
class TestSet:
    """Describe the examples of a split as a network wants them.

    `mean` and `std` (channels,) are those that it was trained with, whatever the file's own are.
    `labels` maps the file's labels to the network's classes; None where they are the same.
    """

    data: Dataset
    augment: Augment
    batch: int
    mean: Array
    std: Array
    labels: Index | None = None
    split: str = "test"


def test(
    distributed: DistributedModel,
    state: State,
    examples: TestSet,
    stopping: Callable[[], bool] = lambda: False,
    guesses: Array | None = None,
) -> Score | None:
    """Return the score on all examples, None if a rank is `stopping` before. Collective.

    `guesses`, float64 (examples,) of zeros, gets the class that the network sees in each.
    """
    totals, count = Totals(), 0
    wanted = distributed.mesh.sum(np.zeros(1))
    inputs = Inputs(
        examples.mean, examples.std, examples.augment.for_evaluation(), distributed.dtype,
        distributed.ops,
    )  # fmt: skip
    with Batches(
        examples.data.split(examples.split),
        Order(examples.batch, distributed.seed, shuffle=False, epochs=1),
        lambda n: distributed.program(n).positions,
        inputs,
    ) as batches:
        for item in batches:
            program = distributed.program(item.count)
            labels = item.labels if examples.labels is None else examples.labels[item.labels]
            part = None if guesses is None else guesses[count : count + item.count]
            totals += distributed.executor.evaluate(program, state, item.x, labels, part)
            count += item.count
            distributed.activity.begin("test", "sum over the ranks", waits=True)
            if wanted.wait()[0]:
                return None
            wanted = distributed.mesh.sum(np.array([float(stopping())]))
    distributed.activity.begin("test", "sum over the ranks", waits=True)
    wanted.wait()
    loss, top1, top5 = distributed.mesh.sum(totals.read()).wait()
    if guesses is not None:
        guesses[...] = distributed.mesh.sum(guesses).wait()
    return Score(float(loss) / count, float(top1) / count, float(top5) / count)


def label_map(found: tuple[str, ...], known: tuple[str, ...]) -> Index | None:
    """Return which of the `known` classes each of the `found` ones is; None if all are in order.

    Raises ValueError, naming them, where a class found is not known.
    """
    if found == known:
        return None
    odd = [name for name in found if name not in known]
    if odd:
        raise ValueError(", ".join(odd[:3]) + (", …" if len(odd) > 3 else ""))
    return np.array([known.index(name) for name in found], np.int64)
