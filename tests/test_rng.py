"""Counter-based draws: the published generator, their distributions, no trace of any division."""

import math

import numpy as np
import pytest

from mpicnn import rng
from mpicnn.layers import Param
from mpicnn.step.initial import initial_rows

FULL = 0xFFFFFFFF
# counter, key, words: Random123's kat_vectors, "philox4x32 10"
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((FULL,) * 4, (FULL,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize("counter, key, words", PUBLISHED)
def test_published_vectors(counter, key, words):
    drawn = rng.philox4x32(*counter, key)
    assert drawn.dtype == np.uint32
    assert [f"{word:08x}" for word in drawn] == words.split()


def test_counters_broadcast():
    drawn = rng.philox4x32(np.arange(3), np.arange(2)[:, None], 5, 6, (7, 8))
    assert drawn.shape == (2, 3, 4)
    np.testing.assert_array_equal(drawn[1, 2], rng.philox4x32(2, 1, 5, 6, (7, 8)))


def test_keys_differ_by_seed_and_purpose():
    keys = {rng.key(seed, purpose) for seed in range(50) for purpose in ("order", "crop", "flip")}
    assert len(keys) == 150
    assert all(0 <= word <= FULL for key in keys for word in key)


def test_draws_belong_to_global_indices():
    index = np.array([0, 1, 2**40 + 1, 5])
    whole = rng.draws(3, "crop", 9, index)
    assert whole.shape == (4, 4)
    assert len({tuple(row) for row in whole}) == 4
    np.testing.assert_array_equal(rng.draws(3, "crop", 9, index[2:]), whole[2:])
    for step in (10, 9 + 2**32):
        assert (rng.draws(3, "crop", step, index) != whole).any(axis=1).all()
    assert rng.draws(3, "crop", 9, index[:0]).shape == (0, 4)


def test_permutation():
    order = rng.permutation(1009, 1, 0)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1009))
    np.testing.assert_array_equal(order, rng.permutation(1009, 1, 0))
    # a random permutation has one fixed point on average; 8 or more have probability 1e-5
    for other in (rng.permutation(1009, 1, 1), rng.permutation(1009, 2, 0), np.arange(1009)):
        assert (order == other).sum() < 8
    assert rng.permutation(0, 1, 0).shape == (0,)


def test_first_places_of_permutations_are_uniform():
    firsts = [rng.permutation(5, 0, epoch)[0] for epoch in range(2000)]
    # 400 expected of each; six standard deviations of sqrt(2000 * 0.2 * 0.8) = 18
    assert abs(np.bincount(firsts, minlength=5) - 400).max() < 108


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("rate", (0.0, 0.3, 0.5))
def test_dropout_mask_values(rate, dtype):
    mask = rng.dropout_mask(rate, 5, 1, 2, np.arange(100), (0, 1000), dtype)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) <= {0, np.dtype(dtype).type(1 / (1 - rate))}
    # six standard deviations of the mean of 1e5 draws
    assert abs((mask == 0).mean() - rate) <= 6 * math.sqrt(rate * (1 - rate) / 1e5)


def test_dropout_mask_is_the_documented_one():
    mask = rng.dropout_mask(0.5, 5, 1, 2, np.array([3, 8]), (5, 7), "float64")
    for row, position in enumerate((3, 8)):
        for column, feature in enumerate((5, 6)):
            words = rng.philox4x32(feature // 4, position, 2, 1, rng.key(5, "dropout"))
            assert mask[row, column] == (2 if words[feature % 4] >= 2**31 else 0)


@pytest.mark.parametrize("chunk", (1, 8, 1 << 14))
def test_dropout_mask_is_the_same_for_any_division(monkeypatch, chunk):
    monkeypatch.setattr(rng, "CHUNK", chunk)
    positions = np.array([0, 4, 2, 9, 7, 8, 1])
    whole = rng.dropout_mask(0.5, 5, 1, 2, positions, (0, 23), "float32")
    for rows in (slice(0, 3), slice(3, 3), slice(3, 7)):
        for lo, hi in ((0, 5), (5, 5), (5, 6), (6, 23)):
            part = rng.dropout_mask(0.5, 5, 1, 2, positions[rows], (lo, hi), "float32")
            np.testing.assert_array_equal(part, whole[rows, lo:hi])


def test_dropout_masks_differ_by_seed_layer_and_step():
    masks = [
        rng.dropout_mask(0.5, seed, layer, step, np.arange(10), (0, 100), "float32")
        for seed, layer, step in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            # half of 1000 are expected to agree; six standard deviations are 95
            assert abs((mask == other).sum() - 500) < 95


@pytest.mark.parametrize(
    "init, variance",
    (("he", 2 / 75), ("xavier", 2 / (75 + 64 * 25)), (0.01, 1e-4)),
)
def test_initial_distribution(init, variance):
    w = initial_rows(Param((64, 3, 5, 5), init, 75), 1, "conv1.w", (0, 64), "float64")
    assert w.shape == (64, 3, 5, 5)
    # six standard deviations of the mean of 4800 values, and about as much of their variance
    assert abs(w.mean()) < 6 * math.sqrt(variance / w.size)
    assert w.var() == pytest.approx(variance, rel=6 * math.sqrt(2 / w.size))
    if init == "xavier":
        assert abs(w).max() <= math.sqrt(3 * variance)


def test_initial_constants():
    np.testing.assert_array_equal(
        initial_rows(Param((7,), "ones"), 1, "n", (2, 5), "float32"), [1] * 3
    )
    np.testing.assert_array_equal(
        initial_rows(Param((7, 2), "zeros"), 1, "n", (2, 4), "float32"), np.zeros((2, 2))
    )


@pytest.mark.parametrize("shape", ((11, 3, 5, 5), (11, 7), (11,)))
@pytest.mark.parametrize("chunk", (1, 8, 1 << 14))
def test_initial_rows_are_the_same_for_any_division(monkeypatch, shape, chunk):
    param = Param(shape, "he", 9)
    whole = initial_rows(param, 1, "fc6.w", (0, 11), "float32")
    assert len(np.unique(whole)) > 0.9 * whole.size
    monkeypatch.setattr(rng, "CHUNK", chunk)
    for lo, hi in ((0, 4), (4, 4), (4, 5), (5, 11)):
        part = initial_rows(param, 1, "fc6.w", (lo, hi), "float32")
        assert part.dtype == np.float32
        np.testing.assert_array_equal(part, whole[lo:hi])


def test_initial_differs_by_seed_and_name():
    param = Param((5, 7), 1.0)
    a, b, c = (
        initial_rows(param, *which, (0, 5), "float64") for which in ((0, "a"), (1, "a"), (0, "b"))
    )
    assert not (a == b).any()
    assert not (a == c).any()


def test_initial_of_an_unknown_kind():
    with pytest.raises(ValueError, match="orthogonal"):
        initial_rows(Param((5, 7), "orthogonal"), 0, "w", (0, 5), "float32")
