"""Winograd's convolutions against exact matrices and convolutions in float64."""

from fractions import Fraction
from math import prod

import numpy as np
import pytest

from mpicnn.ops import numpy as plain

native = pytest.importorskip(
    "mpicnn.ops.native", reason="the native kernels are not built here", exc_type=ImportError
)
from mpicnn.ops._native_core import HAS_BLAS, core  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402

pytestmark = pytest.mark.skipif(not HAS_BLAS, reason="convolutions need a BLAS")

ONE = (1, 1)
POINTS = [Fraction(p) for p in (0, 1, -1, 2, -2, "1/2", "-1/2")]
METHODS = {"winograd 4x4,5x5": 5, "winograd 4x4,3x3": 3, "winograd 6x6,3x3": 3}
# x, outputs, padding, groups: kernels of 3 or 5 by method
SHAPES = {
    "one pixel": ((3, 7, 1, 1), 9, (2, 2), 1),
    "one tile": ((2, 1, 4, 4), 1, (2, 1), 1),
    "less than a tile": ((9, 5, 3, 2), 3, (2, 2), 1),
    "odd": ((2, 17, 13, 11), 23, (1, 2), 1),
    "lines": ((2, 3, 1, 70), 5, (2, 0), 1),
    "wide": ((1, 4, 6, 230), 30, (1, 1), 1),
    "no padding": ((2, 13, 10, 9), 31, (0, 0), 1),
    "more padding than kernel": ((2, 5, 9, 9), 3, (6, 5), 1),
    "many channels": ((2, 293, 8, 7), 211, (2, 2), 1),
    "more outputs than a block": ((1, 3, 7, 7), 523, (1, 1), 1),
    "more inputs than a block": ((1, 521, 7, 7), 530, (1, 1), 1),
    "many tiles": ((40, 6, 16, 16), 10, (2, 2), 1),
    "groups": ((3, 14, 9, 9), 22, (1, 1), 2),
}


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def compute(method, x, w, b, dy, padding, groups, relu=False):
    """Return y, dx and dw by one method."""
    shape = core.ConvShape(x.shape, w.shape, ONE, padding, ONE, groups)
    # NaN shows what is not written
    y, dx, dw = (np.full(like.shape, np.nan, like.dtype) for like in (dy, x, w))
    core.conv2d(shape, x, w, b, relu, y, method)
    core.conv2d_dx(shape, dy, w, dx, method)
    core.conv2d_dw(shape, x, dy, dw, method)
    return y, dx, dw


def case(kernel, x_shape, o, padding, groups):
    """Return x, w, b, dy and the rest of `compute`'s arguments."""
    n, c, h, w = x_shape
    taps = draw((o, c // groups, kernel, kernel), 1)
    oh, ow = (a + 2 * p - kernel + 1 for a, p in zip((h, w), padding, strict=True))
    return draw(x_shape), taps, draw((o,), 2), draw((n, o, oh, ow), 3), padding, groups


def distance(got, expected):
    """Return the relative error in the Euclidean norm."""
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.fixture(autouse=True)
def one_thread():
    yield
    native.set_threads(1)
    native.set_convolution("auto")


@pytest.mark.parametrize("method", METHODS)
def test_matrices_are_toom_and_cooks(method):
    a, g, b = core.winograd_matrices()[method]
    size = len(b)
    points = POINTS[: size - 1]

    def divided_by(j):
        return prod((points[j] - p for k, p in enumerate(points) if k != j), start=Fraction(1))

    def coefficients(roots):
        found = [Fraction(1)]
        for root in roots:
            shifted, scaled = [Fraction(0), *found], [root * value for value in found] + [0]
            found = [x - y for x, y in zip(shifted, scaled, strict=True)]
        return found + [Fraction(0)] * (size - len(found))

    infinity = [[0] * (len(rows[0]) - 1) + [1] for rows in (a, g)]
    assert a == [[p**i for i in range(len(a[0]))] for p in points] + infinity[:1]
    # G is not exact in binary: each entry is the float64 nearest to it
    exact = [[p**i / divided_by(j) for i in range(len(g[0]))] for j, p in enumerate(points)]
    assert g == [[float(value) for value in row] for row in exact] + infinity[1:]
    others = [[p for k, p in enumerate(points) if k != j] for j in range(len(points))]
    assert b == [coefficients(roots) for roots in (*others, points)]

    # and they convolve exactly
    taps, inputs = range(1, len(g[0]) + 1), [Fraction(7 * i % 5 - 2) for i in range(size)]
    values = [
        sum(x * y for x, y in zip(row, taps, strict=True))
        * sum(Fraction(x) * y for x, y in zip(polynomial, inputs, strict=True))
        for row, polynomial in zip([*exact, infinity[1]], b, strict=True)
    ]
    for i in range(len(a[0])):
        expected = sum(t * inputs[i + k] for k, t in enumerate(taps))
        assert (
            sum(Fraction(row[i]) * value for row, value in zip(a, values, strict=True)) == expected
        )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("method", [*METHODS, "im2col"])
def test_convolution(method, shape):
    x, w, b, dy, padding, groups = args = case(METHODS.get(method, 5), *shape)
    y, dx, dw = compute(method, *args)
    x, w, b, dy = (array.astype(np.float64) for array in (x, w, b, dy))
    geometry = ONE, padding, ONE, groups
    expected = (
        plain.conv2d(x, w, b, Window.of(*geometry)),
        plain.conv2d_dx(dy, w, x.shape, Window.of(*geometry)),
        plain.conv2d_dw(x, dy, w.shape, Window.of(*geometry)),
    )
    # Sums of products in float32 have errors of some eps = 6e-8 each; the transforms multiply by
    # up to 5.25 twice and cancel, which costs a decimal digit and a half.
    tolerance = 2e-6 if method == "im2col" else 1e-5
    for got, exact in zip((y, dx, dw), expected, strict=True):
        assert distance(got, exact) <= tolerance
    np.testing.assert_array_equal(compute(method, *args, relu=True)[0], native.activate("relu", y))


@pytest.mark.parametrize("peak", [1e3, 1e6, 1e30])
@pytest.mark.parametrize("method", [*METHODS, "im2col"])
def test_what_a_large_value_does_to_its_neighbours(method, peak):
    """The error that docs/kernels.md states: of outputs that do not see the large value at all."""
    kernel = METHODS.get(method, 5)
    pad = kernel // 2
    x, w, _, dy, padding, groups = case(kernel, (2, 3, 24, 24), 16, (pad, pad), 1)
    x[:, 1, 11, 13] = peak
    y = compute(method, x, w, None, dy, padding, groups)[0]
    exact = plain.conv2d(x.astype(float), w.astype(float), None, Window.of(ONE, padding, ONE, 1))
    error = np.abs(y - exact)
    error[..., 11 - pad : 12 + pad, 13 - pad : 14 + pad] = 0
    taps = np.abs(w[:, 1]).sum(axis=(1, 2)).max()
    if method == "im2col":
        assert error.max() < 1e-4
    else:
        assert 0.1 < error.max() / (np.finfo(np.float32).eps * peak * taps) < 32


@pytest.mark.parametrize("method", METHODS)
def test_how_large_values_may_be(method):
    """As docs/kernels.md says: up to 1e36, for kernels whose taps have the sum 1."""
    x, w, _, dy, padding, groups = case(METHODS[method], (2, 3, 24, 24), 16, (1, 1), 1)
    x = (1e36 * np.sign(x)).astype(np.float32)
    w /= np.abs(w).sum(axis=(1, 2, 3), keepdims=True)
    assert np.isfinite(compute(method, x, w, None, dy, padding, groups)[0]).all()
    with np.errstate(all="ignore"):
        x *= 100
    assert not np.isfinite(compute(method, x, w, None, dy, padding, groups)[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_passes_are_adjoint(method):
    x, w, _, dy, padding, groups = case(METHODS[method], (3, 19, 11, 10), 29, (2, 1), 1)
    y, dx, dw = compute(method, x, w, None, dy, padding, groups)
    exact = [np.vdot(left.astype(float), right) for left, right in ((dy, y), (dx, x), (dw, w))]
    # an inner product of tensors with independent errors of 1e-5 is as exact as their norms
    scale = np.linalg.norm(dy.astype(float)) * np.linalg.norm(y.astype(float))
    np.testing.assert_allclose(exact[1:], exact[0], atol=1e-5 * scale)


@pytest.mark.parametrize("c, o", [(70, 90), (300, 12), (260, 50)])
@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_threads(method, c, o):
    args = case(METHODS[method], (13, c, 17, 19), o, (2, 2), 1)

    def bits():
        return [array.tobytes() for array in compute(method, *args)]

    expected = bits()
    for count in (1, 2, 5):
        native.set_threads(count)
        assert bits() == expected, f"{count} threads"


@pytest.mark.parametrize("method", METHODS)
def test_parts_make_the_whole(method):
    x, w, b, dy, padding, groups = case(METHODS[method], (7, 30, 9, 9), 50, (1, 1), 1)
    y, dx, dw = compute(method, x, w, b, dy, padding, groups)

    def part(n=slice(None), c=slice(None), o=slice(None)):
        arrays = x[n, c], w[o, c], None, dy[n, o]
        return compute(method, *(a if a is None else a.copy() for a in arrays), padding, groups)

    y -= b[:, None, None]
    batches = [part(n=n) for n in (slice(0, 3), slice(3, 7))]
    outputs = [part(o=o) for o in (slice(0, 17), slice(17, 50))]
    inputs = [part(c=c) for c in (slice(0, 29), slice(29, 30))]
    pairs = [
        (np.concatenate([p[0] for p in batches]), y),
        (np.concatenate([p[1] for p in batches]), dx),
        (sum(p[2] for p in batches), dw),
        (np.concatenate([p[0] for p in outputs], 1), y),
        (sum(p[1] for p in outputs), dx),
        (np.concatenate([p[2] for p in outputs]), dw),
        (sum(p[0] for p in inputs), y),
        (np.concatenate([p[1] for p in inputs], 1), dx),
        (np.concatenate([p[2] for p in inputs], 1), dw),
    ]
    for got, expected in pairs:
        assert distance(got, expected) <= 1e-5  # as in `test_convolution`


def test_choice_of_methods():
    large, small = (64, 150, 16, 16), (64, 3, 32, 32)
    geometry = ONE, (2, 2), ONE, 1
    best = native.conv2d_methods(large, (800, 150, 5, 5), Window.of(*geometry), np.float32)
    assert best == ("winograd 4x4,5x5",) * 3
    assert (
        native.conv2d_methods(large, (800, 150, 5, 5), Window.of(*geometry), "float64")
        == ("im2col",) * 3
    )
    # each output would cost a transform for three products
    few = native.conv2d_methods(small, (500, 3, 5, 5), Window.of(*geometry), np.float32)
    assert few == ("lines", "im2col", "lines")
    for other in (((2, 2), (2, 2), ONE, 1), (ONE, (2, 2), (2, 1), 1)):
        found = native.conv2d_methods(large, (800, 150, 5, 5), Window.of(*other), np.float32)
        assert found == ("im2col",) * 3
    apart = native.conv2d_methods(
        (64, 128, 28, 28), (128, 1, 3, 3), Window.of(ONE, ONE, ONE, 128), np.float32
    )
    assert apart == ("depthwise",) * 3
    assert (
        native.conv2d_methods((0, 3, 9, 9), (4, 3, 3, 3), Window.of(*geometry), "float32")[0]
        == "none"
    )
    native.set_convolution("direct")
    direct = native.conv2d_methods(large, (800, 150, 5, 5), Window.of(*geometry), np.float32)
    assert direct == ("im2col",) * 3
    with pytest.raises(ValueError, match="auto or direct"):
        native.set_convolution("winograd")


def test_the_switch_changes_what_is_computed():
    x, w, geometry = draw((4, 64, 8, 8)), draw((64, 64, 5, 5)), (ONE, (2, 2), ONE)
    native.set_convolution("direct")
    direct = native.conv2d(x, w, None, Window.of(*geometry))
    native.set_convolution("auto")
    quick = native.conv2d(x, w, None, Window.of(*geometry))
    assert not np.array_equal(direct, quick)
    assert distance(quick, direct) <= 1e-5


def test_a_method_that_does_not_fit_is_refused():
    x, w, b, dy, padding, groups = case(3, (2, 3, 8, 8), 4, (1, 1), 1)
    for name in ("winograd 4x4,5x5", "fft"):
        with pytest.raises(ValueError, match=name):
            compute(name, x, w, b, dy, padding, groups)
