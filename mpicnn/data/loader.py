"""Read batches ahead of the training: any step first, the same batch on any number of ranks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from numpy.typing import DTypeLike

from mpicnn import rng
from mpicnn.data.augment import Augment
from mpicnn.data.file import Split
from mpicnn.data.layout import Array, Index
from mpicnn.data.mixing import Mixture, partner_labels, with_partners
from mpicnn.layers.loss import Labels, MixedLabels
from mpicnn.ops import numpy as plain
from mpicnn.ops.interface import Backend

AHEAD = 2  # Batches kept ready: one to smooth over slow reads, one more to smooth over slow steps.


@dataclass(frozen=True)
class Batch:
    """Hold one rank's share of a global batch.

    `x` is (rows, c, h, w), normalised, of the rows asked for; `labels`, int64 (count,), are of
    the whole global batch of `count` examples; `step` counts from the start of the training.
    `mixture` says how the images are mixed with their partners; None: they are not.
    """

    x: Array
    labels: Index
    count: int
    epoch: int
    step: int
    mixture: Mixture | None = None

    @property
    def targets(self) -> Labels:
        """Return what the loss compares answers with: the labels, mixed as the images are."""
        if self.mixture is None:
            return self.labels
        return MixedLabels(self.labels, partner_labels(self.labels), self.mixture.weight)


@dataclass(frozen=True)
class Order:
    """Say which examples make a batch, and which batch is the first.

    Step s of epoch e takes the next `batch` of the examples in the order
    `rng.permutation(n, seed, e)` (in file order without `shuffle`); the last batch of an epoch
    is whatever is left, so that an epoch has ceil(n / batch) steps and every example once.
    The first batch is of `start_step`, whichever that is, at no extra cost. They end after epoch
    `epochs` - 1, or never if `epochs` is None. `seed` is of the augmentation too.
    """

    batch: int
    seed: int
    start_step: int = 0
    shuffle: bool = True
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.start_step < 0:
            raise ValueError(
                f"batch {self.batch} must be positive, start_step {self.start_step} at least 0"
            )


@dataclass(frozen=True)
class Inputs:
    """Say what becomes of images: varied, normalised by `mean` and `std` (c,), arrays of `ops`."""

    mean: Array
    std: Array
    augment: Augment = Augment(random=False)
    dtype: DTypeLike = np.float32
    ops: Backend = plain


class Batches:
    """Iterate over the batches of a split, read ahead by a thread of its own.

    `rows` maps the number of examples in a global batch to the positions in it (int64, each in
    0 … count-1) that this rank needs; it is called in the reading thread.

    An exception in the reading thread is raised by `next()` in place of the batch that failed.
    Use as a context manager, or call `close()`, to end the thread.
    """

    def __init__(
        self, split: Split, order: Order, rows: Callable[[int], Index], inputs: Inputs
    ) -> None:
        self.split, self.order, self.rows, self.inputs = split, order, rows, inputs
        self.feed = inputs.ops.Feed()
        self.shape = inputs.augment.out_shape(split.shape)
        self.steps_per_epoch = -(-len(split) // order.batch)
        self._stop = None if order.epochs is None else order.epochs * self.steps_per_epoch
        self._permuted: tuple[int, Index] = (-1, np.empty(0, np.int64))
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._end: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="mpicnn-data", daemon=True)
        self._thread.start()

    def __iter__(self) -> Batches:
        """Return the iterator: itself."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if it is not ready yet."""
        if self._end is None:
            found = self._ready.get()
            if isinstance(found, Batch):
                return replace(found, x=self.feed.take(found.x))
            self._end = found
        raise self._end

    def close(self) -> None:
        """End the reading thread; batches read ahead are dropped. Calling it twice does no harm."""
        self._closing.set()
        self._end = self._end or StopIteration()
        while self._thread.is_alive():
            # The thread may be waiting for room in the queue: make some, until it sees the flag.
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(0.01)

    def __enter__(self) -> Batches:
        """Return the iterator itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the reading thread."""
        self.close()

    def _read_ahead(self) -> None:
        step = self.order.start_step
        try:
            while not self._closing.is_set() and (self._stop is None or step < self._stop):
                self._ready.put(self._read(step))
                step += 1
            end: BaseException = StopIteration()
        # Whatever it is, the consumer must get it: an exception in a thread ends nothing by itself.
        except BaseException as error:
            end = error
        if not self._closing.is_set():
            self._ready.put(end)

    def _read(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        batch, inputs = self.order.batch, self.inputs
        index = self._epoch_order(epoch)[place * batch : (place + 1) * batch]
        positions = np.asarray(self.rows(len(index)), np.int64)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(index):
            raise ValueError(f"rows: positions outside 0 to {len(index) - 1}: {positions}")
        augment, seed = inputs.augment, self.order.seed
        mixture = augment.mix.draw(seed, step, self.shape[1:])
        wanted, partners = (
            with_partners(positions, len(index)) if mixture else (positions, positions)
        )
        mine = index[wanted]
        windows = augment.windows(self.split.shape, seed, epoch, mine)

        def make(images: Array) -> Array:
            x = augment.apply(inputs.ops, images, windows, inputs.mean, inputs.std, inputs.dtype)
            return mixture.blend(inputs.ops, x, partners) if mixture else x

        x = self.feed.put(augment.vary(self.split.read(mine), seed, epoch, mine), make)
        return Batch(x, self.split.labels[index], len(index), epoch, step, mixture)

    def _epoch_order(self, epoch: int) -> Index:
        if self._permuted[0] != epoch:
            n, order = len(self.split), self.order
            index = rng.permutation(n, order.seed, epoch) if order.shuffle else np.arange(n)
            self._permuted = (epoch, index)
        return self._permuted[1]
