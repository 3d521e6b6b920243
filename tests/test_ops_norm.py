"""What normalisation is made of, in every backend, against formulas in numbers of more digits."""

import numpy as np
import pytest
from backends import host

DTYPES = ("float64", "float32")
# no space, one pixel, two, 7 × 7 and 32 × 32 of them; more than one piece of the native kernels
SPACES = [(), (1, 1), (2, 1), (7, 7), (32, 32), (47, 61)]
CASES = [(dtype, space, seed) for dtype in DTYPES for space in SPACES for seed in range(3)]


def drawn(dtype, space, seed):
    """Return x, dy and a generator, for numbers of examples and channels that are drawn."""
    rng = np.random.default_rng([seed, *space])
    n, c = int(rng.integers(1, 8)), int(rng.integers(1, 9 if space else 150))
    x, dy = (rng.standard_normal((n, c, *space)).astype(dtype) for _ in range(2))
    return x, dy, rng


def wide(a, like=None):
    """Return a copy of more digits; numbers per channel, or per plane, get the axes of `like`."""
    a = np.asarray(a, np.longdouble)
    return a if like is None else a.reshape(*a.shape, *(1,) * (like.ndim - 2))


def axes_of(x, planes):
    return (*(() if planes else (0,)), *range(2, x.ndim))


def close(found, expected, dtype, roundings, scale):
    """Check an array to so many roundings of `scale`, the size of what is added up."""
    assert found.shape == expected.shape
    error = np.abs(host(found) - expected)
    assert (error <= roundings * np.finfo(dtype).eps * scale).all(), (error / scale).max()


@pytest.mark.parametrize("planes", (False, True), ids=("channels", "planes"))
@pytest.mark.parametrize("dtype, space, seed", CASES)
def test_functions(ops, dtype, space, seed, planes):
    x, dy, rng = drawn(dtype, space, seed)
    each = x.shape[:2] if planes else x.shape[1:2]
    mean, scale, shift, along = rng.standard_normal((4, *each)).astype(dtype)
    there, dthere, *numbers = (ops.xp.asarray(a) for a in (x, dy, mean, scale, shift, along))
    factors = ops.xp.stack((numbers[1], numbers[3], numbers[2]))
    y = ops.normalise(there, *numbers[:3])
    sums, products = ops.normalise_sums(dthere, there, numbers[0])
    dx = ops.normalise_dx(dthere, there, numbers[0], factors)
    assert {a.dtype for a in (y, sums, products, dx)} == {np.dtype(dtype)}
    distance, axes = wide(x) - wide(mean, x), axes_of(x, planes)
    along = distance * wide(along, x) + wide(shift, x)
    # a few roundings of each term
    close(y, distance * wide(scale, x) + wide(shift, x), dtype, 3, 1 + np.abs(along).max() * 4)
    close(dx, wide(dy) * wide(scale, x) - along, dtype, 4, 1 + np.abs(along).max() * 4)
    # a few terms in the dtype, then float64
    close(sums, wide(dy).sum(axes), dtype, 8, np.abs(wide(dy)).sum(axes))
    close(
        products, (wide(dy) * distance).sum(axes), dtype, 8, np.abs(wide(dy) * distance).sum(axes)
    )
    for first, a in ((there, x), (dthere, dy)):  # still as they were
        np.testing.assert_array_equal(host(first), a)
    over = ops.normalise_dx(dthere, there, numbers[0], factors, over=True)
    np.testing.assert_array_equal(host(over), host(dx))
    over = ops.normalise(there, *numbers[:3], over=True)
    np.testing.assert_array_equal(host(over), host(y))


@pytest.mark.parametrize("planes", (False, True), ids=("channels", "planes"))
@pytest.mark.parametrize("mean", (0.0, 1e4, -3e5))
@pytest.mark.parametrize("dtype, space, seed", CASES)
def test_moments(ops, dtype, space, seed, mean, planes):
    """As exact where the mean is large as where it is not, for x as it was rounded."""
    x, *_ = drawn(dtype, space, seed)
    x += np.asarray(mean, dtype)
    agree_on_moments(ops, x, planes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", ("first pixel", "first line", "first", "last", "half"))
def test_moments_of_values_unlike_the_others(ops, dtype, at):
    """No number that some values are near is near all of them."""
    x = np.random.default_rng(5).standard_normal((40, 3, 17, 13)).astype(dtype)
    parts = {
        "first pixel": np.s_[0, :, 0, 0], "first line": np.s_[0, :, 0], "first": np.s_[0],
        "last": np.s_[-1], "half": np.s_[20:],
    }  # fmt: skip
    x[parts[at]] += 1000
    agree_on_moments(ops, x, False)


def agree_on_moments(ops, x, planes):
    dtype = x.dtype
    mean, squares = ops.moments(ops.xp.asarray(x), planes)
    assert mean.dtype == squares.dtype == np.float64
    axes = axes_of(x, planes)
    expected = wide(x).mean(axes)
    distance = wide(x) - wide(expected, x)
    right = (distance**2).sum(axes)
    # a few terms in the dtype, then float64: it is distances whose digits count, not those of x
    near, far = np.abs(distance).mean(axes), np.abs(distance).max(axes)
    digits, fine = np.finfo(dtype).eps, (np.abs(expected) + far) * np.finfo(np.float64).eps
    assert (np.abs(host(mean) - expected) <= 8 * digits * near + 2 * fine).all()
    off = 2 * fine * np.sqrt(right * (x.size / max(1, right.size)))
    assert (np.abs(host(squares) - right) <= 16 * digits * right + off).all()


def test_nothing(ops):
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4), (0, 3), (0, 0)):
        x = ops.xp.zeros(shape, np.float32)
        for each, planes in ((shape[1:2], False), (shape[:2], True)):
            numbers = ops.xp.ones(each, np.float32)
            zeros = *ops.moments(x, planes), *ops.normalise_sums(x, x, numbers)
            for found in zeros:
                np.testing.assert_array_equal(host(found), np.zeros(each))
            assert ops.normalise(x, numbers, numbers, numbers).shape == shape
            assert ops.normalise_dx(x, x, numbers, ops.xp.stack([numbers] * 3)).shape == shape


def test_what_is_not_a_number_stays(ops):
    for bad in (np.nan, np.inf):
        x = np.zeros((2, 2, 3, 3), np.float32)
        x[1, 1, 2, 2] = bad
        with np.errstate(invalid="ignore"):
            _, squares = ops.moments(ops.xp.asarray(x))
        np.testing.assert_array_equal(np.isfinite(host(squares)), [True, False])
