"""Cutting and normalising images: every backend gives the bits of the definition."""

import numpy as np
import pytest
from backends import host

MEAN, STD = np.array([100.3, 20.0, 130.5]), np.array([50.1, 3.0, 77.7])


def by_definition(batch, tops, lefts, flips, size, dtype):
    """Go pixel by pixel; the operations, and so the bits, are those of the backends."""
    n, c, h, w = batch.shape
    mean, std = MEAN[:c].astype(dtype), STD[:c].astype(dtype)
    out = np.empty((n, c, *size), dtype)
    for i, channel, line, column in np.ndindex(out.shape):
        y = tops[i] + line
        x = lefts[i] + (size[1] - 1 - column if flips[i] else column)
        inside = 0 <= y < h and 0 <= x < w
        value = dtype(batch[i, channel, y, x]) if inside else mean[channel]
        out[i, channel, line, column] = (value - mean[channel]) / std[channel]
    return out


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("size", ((5, 4), (3, 7), (1, 1), (9, 8)))
@pytest.mark.parametrize("n, c", ((6, 3), (5, 1), (0, 3), (2, 0)))
def test_images(ops, n, c, size, dtype):
    rng = np.random.default_rng(2)
    batch = rng.integers(0, 256, (n, c, 5, 4), np.uint8)
    # from wholly above and left of the image to wholly below and right of it
    tops, lefts = rng.integers(-10, 7, n), rng.integers(-9, 6, n)
    flips = rng.integers(0, 2, n) > 0
    args = tops, lefts, flips, MEAN[:c], STD[:c], size, dtype
    found = ops.images(ops.xp.asarray(batch), *args)
    assert found.dtype == dtype
    expected = by_definition(batch, tops, lefts, flips, size, dtype)
    np.testing.assert_array_equal(host(found), expected)


def test_whole_images(ops):
    batch = np.random.default_rng(1).integers(0, 256, (4, 3, 5, 4), np.uint8)
    zero = np.zeros(4, np.int64)
    for flips in (zero > 0, zero == 0):
        found = ops.images(ops.xp.asarray(batch), zero, zero, flips, MEAN, STD, (5, 4), np.float32)
        expected = by_definition(batch, zero, zero, flips, (5, 4), np.float32)
        np.testing.assert_array_equal(host(found), expected)


def test_images_of_a_view(ops):
    batch = np.random.default_rng(1).integers(0, 256, (6, 3, 8, 4), np.uint8)
    args = np.arange(3), np.arange(3) - 1, np.arange(3) > 1
    found = ops.images(
        ops.xp.asarray(batch)[::2, :2, 1:6], *args, MEAN[:2], STD[:2], (4, 4), np.float64
    )
    expected = by_definition(batch[::2, :2, 1:6], *args, (4, 4), np.float64)
    np.testing.assert_array_equal(host(found), expected)
