"""Batches: the same on any division, from any step, and no thread survives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from data_samples import Sample, sample

from mpicnn.data.augment import Augment
from mpicnn.data.file import Dataset, open_dataset
from mpicnn.data.loader import AHEAD, Batch, Batches, Inputs, Order
from mpicnn.data.store import Store

N, BATCH = 23, 7  # Four steps to an epoch, the last of two examples.
VARIED, PLAIN = Augment(crop=(4, 4), pad=1, flip=True), Augment(random=False)
DIVISIONS = [(1,), (1, 1), (3, 1), (0, 2, 1), (1, 0, 0, 1), (1,) * 9]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return sample(tmp_path_factory.mktemp("data") / "a.h5", train=N)


@pytest.fixture
def data(made: Sample) -> Iterator[Dataset]:
    with open_dataset(made.path) as opened:
        yield opened
    left = [thread.name for thread in threading.enumerate() if thread.name == "mpicnn-data"]
    assert not left, "a reading thread was left behind"


def everything(count: int) -> np.ndarray:
    return np.arange(count)


def batches(data: Dataset, rows: Any = everything, **how: Any) -> Batches:
    images = {"mean": data.mean, "std": data.std, "augment": VARIED}
    images |= {key: how.pop(key) for key in ("augment", "dtype", "ops") if key in how}
    order = Order(**{"batch": BATCH, "seed": 3} | how)
    return Batches(data.split("train"), order, rows, Inputs(**images))


def take(data: Dataset, count: int, rows: Any = everything, **how: Any) -> list[Batch]:
    with batches(data, rows, **how) as source:
        return list(islice(source, count))


def share(weights: tuple[int, ...], rank: int, count: int) -> np.ndarray:
    """Return the rank's positions where `weights` divide `count`, rounded down."""
    edges = np.concatenate([[0], np.cumsum(weights)]) * count // sum(weights)
    return np.arange(edges[rank], edges[rank + 1])


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.count, a.epoch, a.step) == (b.count, b.epoch, b.step)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_epochs_and_ragged_batches(data: Dataset) -> None:
    found = take(data, 9)
    assert [batch.count for batch in found] == [7, 7, 7, 2, 7, 7, 7, 2, 7]
    assert [batch.epoch for batch in found] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [batch.step for batch in found] == list(range(9))
    assert all(batch.x.shape == (batch.count, 3, 4, 4) for batch in found)


def test_every_example_once_an_epoch_in_another_order(made: Sample, data: Dataset) -> None:
    plain = take(data, 8, augment=PLAIN, dtype=np.float64)
    orders = []
    for epoch in (plain[:4], plain[4:]):
        x = np.concatenate([batch.x for batch in epoch])
        labels = np.concatenate([batch.labels for batch in epoch])
        images = np.rint(x * data.std[:, None, None] + data.mean[:, None, None])
        # Random images of 60 pixels are all unlike, so each says which one it is.
        order = [
            int(np.flatnonzero((made.images["train"] == image).all(axis=(1, 2, 3)))[0])
            for image in images
        ]
        assert sorted(order) == list(range(N))
        np.testing.assert_array_equal(labels, made.labels["train"][order])
        orders.append(order)
    assert orders[0] != orders[1]


def test_values_are_normalized(made: Sample, data: Dataset) -> None:
    (batch,) = take(data, 1, augment=PLAIN, shuffle=False)
    pixels = made.images["train"][:BATCH].astype(np.float64)
    expected = (pixels - data.mean[:, None, None]) / data.std[:, None, None]
    assert batch.x.dtype == np.float32
    # Mean and deviation rounded to float32, then two operations: a few 6e-8 of 128 / std, about 2.
    np.testing.assert_allclose(batch.x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", DIVISIONS)
def test_same_global_batch_on_any_division(data: Dataset, weights: tuple[int, ...]) -> None:
    whole = take(data, 6)
    parts = [
        take(data, 6, lambda count, rank=rank: share(weights, rank, count))
        for rank in range(len(weights))
    ]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step].x for part in parts]), batch.x)
        for part in parts:
            np.testing.assert_array_equal(part[step].labels, batch.labels)
            assert part[step].count == batch.count


def test_rows_in_any_order_and_number(data: Dataset) -> None:
    (whole,) = take(data, 1)
    (some,) = take(data, 1, lambda count: np.array([5, 0, 5]))
    np.testing.assert_array_equal(some.x, whole.x[[5, 0, 5]])


def test_augmentation_goes_with_the_example(data: Dataset) -> None:
    def epoch(batch: int) -> np.ndarray:
        with batches(data, batch=batch, epochs=1) as source:
            return np.concatenate([each.x for each in source])

    np.testing.assert_array_equal(epoch(5), epoch(BATCH))


@pytest.mark.parametrize("start", range(10))
def test_any_step_first(data: Dataset, start: int) -> None:
    assert_same(take(data, 3, start_step=start), take(data, start + 3)[start:])


def test_one_pass_in_file_order(made: Sample, data: Dataset) -> None:
    with batches(data, augment=VARIED.for_evaluation(), shuffle=False, epochs=1) as source:
        found = list(source)
        assert next(source, None) is None
    assert [batch.count for batch in found] == [7, 7, 7, 2]
    labels = np.concatenate([batch.labels for batch in found])
    np.testing.assert_array_equal(labels, made.labels["train"])


def test_start_behind_the_end(data: Dataset) -> None:
    assert take(data, 5, epochs=2, start_step=8) == []


def test_batch_larger_than_the_split(data: Dataset) -> None:
    assert [batch.count for batch in take(data, 2, batch=1000)] == [N, N]


class Watched:
    """Count reads, and fail from one of them on."""

    def __init__(self, store: Store, fail_at: int | None = None) -> None:
        self.store, self.fail_at, self.reads = store, fail_at, 0

    def read(self, rows: Any) -> Any:
        self.reads += 1
        if self.fail_at is not None and self.reads > self.fail_at:
            raise OSError("the disk is gone")
        return self.store.read(rows)


def watched(data: Dataset, fail_at: int | None = None) -> tuple[Dataset, Watched]:
    split = data.split("train")
    store = Watched(split.store, fail_at)
    return replace(data, splits={"train": replace(split, store=store)}), store


def test_no_rows_no_reading(data: Dataset) -> None:
    data, store = watched(data)
    found = take(data, 5, lambda count: np.arange(0))
    assert [batch.x.shape for batch in found] == [(0, 3, 4, 4)] * 5
    assert [len(batch.labels) for batch in found] == [7, 7, 7, 2, 7]
    assert store.reads == 0


def test_reads_only_so_far_ahead(data: Dataset) -> None:
    data, store = watched(data)
    with batches(data) as source:
        next(source)
        # Those in the queue, the one taken out, and one that waits for room.
        most = AHEAD + 2
        end = time.monotonic() + 5
        while store.reads < most and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.05)
        assert store.reads == most


@pytest.mark.parametrize("fail_at", [0, 1, 5])
def test_error_in_the_thread_is_raised(data: Dataset, fail_at: int) -> None:
    expected = take(data, fail_at)
    data, _ = watched(data, fail_at)
    with batches(data) as source:
        assert_same([next(source) for _ in range(fail_at)], expected)
        for _ in range(2):
            with pytest.raises(Exception, match="the disk is gone"):
                next(source)


@pytest.mark.parametrize("position", [-1, BATCH])
def test_positions_outside_the_batch(data: Dataset, position: int) -> None:
    with (
        batches(data, lambda count: np.array([position])) as source,
        pytest.raises(ValueError, match="positions outside 0 to 6"),
    ):
        next(source)


def test_close_at_any_time(data: Dataset) -> None:
    for taken in range(AHEAD + 2):
        source = batches(data)
        for _ in range(taken):
            next(source)
        source.close()
        source.close()
        assert next(source, None) is None


def test_nonsense_is_refused_before_a_thread_starts(data: Dataset) -> None:
    for wrong in ({"batch": 0}, {"start_step": -1}):
        with pytest.raises(ValueError, match="batch"):
            batches(data, **wrong)
