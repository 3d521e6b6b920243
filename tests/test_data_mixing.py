"""Mixed images and all other variation: by plain forms, and the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from data_samples import sample

from mpicnn import rng
from mpicnn.data import mixing
from mpicnn.data.augment import Augment
from mpicnn.data.colour import Colour
from mpicnn.data.file import open_dataset
from mpicnn.data.layout import Index
from mpicnn.data.loader import Batch, Batches, Inputs, Order
from mpicnn.data.mixing import Mixing, symmetric_beta
from mpicnn.ops import numpy as plain


def test_beta_is_beta() -> None:
    u, v = rng.uniform(1, "test", 0, np.arange(4000))[:, :2].T.tolist()
    for a, cdf in (
        (0.5, lambda x: 2 / math.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
    ):
        drawn = np.sort([symmetric_beta(a, *pair) for pair in zip(u, v, strict=True)])
        # Kolmogorov and Smirnov: above 1.95 / sqrt(n) once in 1000; the draw is a fixed one
        assert abs(cdf(drawn) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)
    ends = [symmetric_beta(a, u, v) for a in (1e-300, 0.2, 1000) for u in (0.0, 1 - 2**-32)
            for v in (0.0, 0.25, 0.5)]  # fmt: skip
    assert all(0 <= x <= 1 for x in ends)


def test_which_batches_are_mixed_and_how() -> None:
    both = Mixing(0.3, 1.0, probability=0.8)
    drawn = [both.draw(2, step, (20, 30)) for step in range(2000)]
    cut = [each for each in drawn if each and each.box]
    averaged = [each for each in drawn if each and not each.box]
    assert drawn.count(None) == pytest.approx(400, abs=60)  # 3 deviations of 18
    assert len(cut) == pytest.approx(800, abs=70) and len(averaged) == pytest.approx(800, abs=70)
    for each in cut:
        top, bottom, left, right = each.box
        assert 0 <= top <= bottom <= 20 and 0 <= left <= right <= 30
        assert each.weight == pytest.approx(1 - (bottom - top) * (right - left) / 600, abs=1e-15)
    assert all(each.box for step in range(20) if (each := Mixing(cutmix=1).draw(2, step, (20, 30))))
    assert Mixing().draw(2, 0, (20, 30)) is None


VARIED = Augment(
    crop=(6, 7), flip=True, area=(0.2, 1.0), colour=Colour(0.4, 0.4, 0.4, 0.1), erase=0.5,
    mix=Mixing(0.4, 1.0, probability=0.9),
)  # fmt: skip


def take(
    path: Path, augment: Augment, rows: Callable[[int], Index] = np.arange, ops=plain
) -> list[Batch]:
    with open_dataset(path) as data:
        inputs = Inputs(data.mean, data.std, augment, np.float64, ops)
        with Batches(data.split("train"), Order(7, 3), rows, inputs) as source:
            return list(islice(source, 8))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample(tmp_path_factory.mktemp("varied") / "a.h5", train=22, shape=(3, 9, 8)).path


def test_mixed_batches_by_the_plain_form(path: Path) -> None:
    kinds = set()
    pairs = zip(take(path, VARIED), take(path, replace(VARIED, mix=Mixing())), strict=True)
    for mixed, whole in pairs:
        mixture = VARIED.mix.draw(3, mixed.step, (6, 7))
        kinds.add(mixture and bool(mixture.box))
        one_hot = np.eye(4)[whole.labels]
        if mixture is None:
            np.testing.assert_array_equal(mixed.x, whole.x)
            np.testing.assert_array_equal(mixed.targets, whole.labels)
            continue
        before = np.roll(np.arange(whole.count), 1)
        keep = np.full((6, 7), mixture.weight)
        if mixture.box:
            top, bottom, left, right = mixture.box
            keep = np.ones((6, 7))
            keep[top:bottom, left:right] = 0
        expected = keep * whole.x + (1 - keep) * whole.x[before]
        np.testing.assert_array_equal(mixed.x, expected)
        found = mixed.targets
        soft = found.weight * np.eye(4)[found.own] + (1 - found.weight) * np.eye(4)[found.other]
        share = keep.mean()
        np.testing.assert_allclose(
            soft, share * one_hot + (1 - share) * one_hot[before], rtol=0, atol=1e-15
        )
    assert kinds == {None, True, False}


@pytest.mark.parametrize("weights", [(1, 1), (3, 0, 1), (1, 2, 1, 4)])
def test_the_same_images_on_any_number_of_ranks(path: Path, weights: tuple[int, ...]) -> None:
    def rows(rank: int) -> Callable[[int], Index]:
        edges = np.concatenate([[0], np.cumsum(weights)])
        return lambda n: np.arange(*(edges[rank : rank + 2] * n // sum(weights)))

    parts = [take(path, VARIED, rows(rank)) for rank in range(len(weights))]
    for step, whole in enumerate(take(path, VARIED)):
        found = np.concatenate([part[step].x for part in parts])
        np.testing.assert_array_equal(found, whole.x)
        for part in parts:
            assert part[step].mixture == whole.mixture
            np.testing.assert_array_equal(part[step].labels, whole.labels)
    some = take(path, VARIED, lambda n: np.array([1, 0, 1]) % n)
    for few, whole in zip(some, take(path, VARIED), strict=True):
        np.testing.assert_array_equal(few.x, whole.x[np.array([1, 0, 1]) % whole.count])


def test_every_backend_gives_the_same_images(path: Path, ops) -> None:
    for found, whole in zip(take(path, VARIED, ops=ops), take(path, VARIED), strict=True):
        x = found.x.get() if hasattr(found.x, "get") else found.x
        np.testing.assert_array_equal(x, whole.x)


def test_a_rank_reads_one_image_more() -> None:
    read, partners = mixing.with_partners(np.arange(4, 8), 16)
    assert read.tolist() == [4, 5, 6, 7, 3]
    assert read[partners].tolist() == [3, 4, 5, 6]
    read, partners = mixing.with_partners(np.arange(16), 16)
    assert read.tolist() == list(range(16)) and read[partners].tolist() == [15, *range(15)]
    assert not any(part.size for part in mixing.with_partners(np.arange(0), 16))
