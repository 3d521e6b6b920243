"""The compiled kernels against the NumPy backend: odd sizes, empty shares, bad arguments."""

import numpy as np
import pytest
from backends import pool
from threadpoolctl import threadpool_info

from mpicnn.ops import numpy as plain
from mpicnn.ops.window import Window

native = pytest.importorskip(
    "mpicnn.ops.native", reason="the native kernels are not built here", exc_type=ImportError
)

ONE, NONE = (1, 1), (0, 0)

# x, w, stride, padding, dilation, groups
CONVOLUTIONS = {
    "odd": ((5, 6, 13, 11), (9, 2, 3, 2), (1, 2), (2, 1), ONE, 3),
    "packed examples": ((70, 3, 9, 9), (7, 3, 5, 5), ONE, (2, 2), ONE, 1),
    "blocks of lines": ((2, 60, 70, 64), (5, 60, 3, 3), ONE, ONE, ONE, 1),
    "dilated, strided, wide": ((2, 3, 70, 64), (5, 3, 7, 7), (2, 2), (3, 3), (2, 1), 1),
    "blocks of channels": ((3, 600, 5, 5), (6, 600, 3, 3), ONE, ONE, ONE, 1),
    "pointwise": ((3, 4, 37, 35), (6, 2, 1, 1), ONE, NONE, ONE, 2),
    "pointwise, packed": ((40, 4, 2, 3), (6, 4, 1, 1), ONE, NONE, ONE, 1),
    "pointwise, strided": ((3, 4, 7, 5), (6, 4, 1, 1), (2, 3), NONE, ONE, 1),
    "depthwise": ((2, 8, 5, 5), (8, 1, 3, 3), ONE, ONE, ONE, 8),
    "depthwise, uneven": ((3, 11, 9, 7), (11, 1, 3, 2), (2, 1), (2, 1), (1, 3), 11),
    "joined in dw": ((37, 5, 4, 3), (6, 5, 3, 3), ONE, ONE, ONE, 1),
    "mostly padding": ((2, 1, 3, 3), (2, 1, 2, 2), (3, 3), (4, 3), ONE, 1),
    "unseen border": ((2, 3, 8, 9), (4, 3, 2, 2), (3, 5), NONE, ONE, 1),
    "no examples": ((0, 3, 8, 8), (4, 3, 3, 3), ONE, ONE, ONE, 1),
    "no inputs": ((2, 0, 8, 8), (4, 0, 3, 3), ONE, ONE, ONE, 1),
    "no outputs": ((2, 3, 8, 8), (0, 3, 3, 3), ONE, ONE, ONE, 1),
}
# x, kernel, stride, padding, ceil_mode
POOLS = [
    ((5, 3, 13, 11), (3, 3), (2, 2), NONE, True),
    ((5, 3, 13, 11), (3, 2), (1, 3), (1, 1), False),
    ((2, 7, 8, 8), (2, 2), (2, 2), NONE, False),
    ((1, 2, 40, 20), (17, 17), (4, 1), (8, 3), True),
    ((3, 5, 9, 21), (2, 2), (2, 2), NONE, False),
    ((2, 5, 9, 35), (2, 2), (2, 2), (1, 1), True),
    ((2, 3, 10, 40), (3, 2), (2, 2), (1, 0), False),
    ((2, 3, 13, 18), (2, 2), (3, 2), NONE, False),
    ((2, 3, 5, 16), (1, 2), (1, 2), NONE, False),
    ((130, 7, 4, 16), (4, 2), (4, 2), (1, 1), True),
    ((0, 3, 8, 8), (2, 2), (2, 2), NONE, False),
    ((3, 0, 8, 8), (2, 2), (2, 2), NONE, True),
]
SHAPES = [(5, 7, 13, 11), (3, 300, 1, 1), (7, 70), (0, 4, 3, 3), (4, 0, 3, 3), (2, 5, 33, 40)]


@pytest.fixture(params=("float32", "float64"))
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture(params=(1, 3), ids="{} threads".format, autouse=True)
def threads(request):
    native.set_threads(request.param)
    yield
    native.set_threads(1)
    native.set_convolution("auto")


def draw(shape, dtype, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def close(got, expected, terms=1):
    """Compare sums of `terms` products: their rounding errors grow with the root of the number,
    and a sum of values of about 1 is itself about that root."""
    assert got.dtype == expected.dtype and got.shape == expected.shape
    tolerance = 32 * np.finfo(got.dtype).eps
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.sqrt(terms))


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_convolution(case, dtype):
    # what transforms round off is larger: test_native_winograd.py
    native.set_convolution("direct")
    x_shape, w_shape, *geometry = case
    window = Window.of(*geometry)
    x, w, b = draw(x_shape, dtype), draw(w_shape, dtype), draw(w_shape[:1], dtype)
    y = plain.conv2d(x, w, b, window)
    dy = draw(y.shape, dtype, 1)
    close(native.conv2d(x, w, b, window), y, w[:1].size)
    close(
        native.conv2d(x, w, None, window),
        plain.conv2d(x, w, None, window),
        w[:1].size,
    )
    for bias in (b, None):
        joined = native.conv2d(x, w, bias, window, True)
        apart = native.activate("relu", native.conv2d(x, w, bias, window))
        np.testing.assert_array_equal(joined, apart, strict=True)
    args = dy, w, x_shape, window
    close(native.conv2d_dx(*args), plain.conv2d_dx(*args), w[:, :1].size)
    args = x, dy, w_shape, window
    close(native.conv2d_dw(*args), plain.conv2d_dw(*args), dy[:, :1].size)


@pytest.mark.parametrize("n, c, o", [(5, 7, 3), (300, 31, 270), (0, 4, 3), (4, 0, 3), (4, 3, 0)])
def test_linear(n, c, o, dtype):
    x, w, b, dy = (draw(shape, dtype) for shape in ((n, c), (o, c), (o,), (n, o)))
    close(native.linear(x, w, b), plain.linear(x, w, b), c)
    close(native.linear(x, w, None), plain.linear(x, w, None), c)
    for bias in (b, None):
        apart = native.activate("relu", native.linear(x, w, bias))
        np.testing.assert_array_equal(native.linear(x, w, bias, True), apart, strict=True)
    close(native.linear_dx(dy, w), plain.linear_dx(dy, w), o)
    close(native.linear_dw(x, dy), plain.linear_dw(x, dy), n)
    before = draw((o, c), dtype)
    dw = before.copy()
    assert native.linear_dw(x, dy, dw) is dw
    close(dw, before + plain.linear_dw(x, dy), n + 1)


@pytest.mark.parametrize("case", POOLS, ids=str)
def test_pooling(case, dtype):
    shape, *window, ceil_mode = case
    # few distinct values: many ties, which the first of them has to win
    x = np.round(draw(shape, dtype))
    y, argmax = native.maxpool(x, *pool(*window), ceil_mode)
    for got, expected in zip((y, argmax), plain.maxpool(x, *pool(*window), ceil_mode), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)
    dy = draw(y.shape, dtype)
    args = dy, argmax, shape, *pool(*window)
    close(native.maxpool_dx(*args), plain.maxpool_dx(*args), 16)
    for padded in (True, False):
        taps = np.prod(window[0])
        args = *pool(*window), ceil_mode, padded
        close(native.avgpool(x, *args), plain.avgpool(x, *args), taps)
        close(native.avgpool_dx(dy, shape, *args), plain.avgpool_dx(dy, shape, *args), taps)


@pytest.mark.parametrize("repeats", (1, 3))  # lines of 4 windows, and of 12
def test_maxpool_of_special_values(repeats):
    x = np.full((1, 1, 4, 8), -np.inf, np.float32)
    x[0, 0, 0, 4] = np.inf
    x[0, 0, 1, 4:6] = np.nan
    x[0, 0, 2, 1] = 3
    y, argmax = native.maxpool(np.tile(x, repeats), *pool((2, 2), (2, 2), NONE), False)
    low = -np.inf
    values = np.array([[low, low, np.nan, low], [3, low, low, low]])
    np.testing.assert_array_equal(y[0, 0], np.tile(values, repeats))
    np.testing.assert_array_equal(argmax[0, 0], np.tile([[0, 0, 2, 0], [1, 0, 0, 0]], repeats))


@pytest.mark.parametrize(
    "line, column, tap, padding",
    [(0, 5, 4, NONE), (0, 5, 255, NONE), (1, 5, 2, NONE), (1, 19, 3, NONE), (0, 0, 2, (0, 1))],
)
def test_places_outside_wide_images_are_refused(line, column, tap, padding):
    dy, argmax = draw((1, 1, 2, 20), np.float32), np.zeros((1, 1, 2, 20), np.uint8)
    argmax[:, :, :, 0] = padding[1]  # inside: one column is padding
    args = dy, argmax, (1, 1, 3, 40 - padding[1]), *pool((2, 2), (2, 2), padding)
    assert native.maxpool_dx(*args).sum() == pytest.approx(dy.sum(), rel=1e-5)
    argmax[0, 0, line, column] = tap
    with pytest.raises(ValueError, match="argmax"):
        native.maxpool_dx(*args)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size, beta", [(5, 0.75), (4, 0.75), (1, 0.5), (9, 0.6)])
def test_lrn(shape, size, beta, dtype):
    x, dy = draw(shape, dtype), draw(shape, dtype, 1)
    y, scale = native.lrn(x, size, 0.5, beta, 2.0)
    for got, expected in zip((y, scale), plain.lrn(x, size, 0.5, beta, 2.0), strict=True):
        close(got, expected, size)
    args = dy, x, y, scale, size, 0.5, beta
    close(native.lrn_dx(*args), plain.lrn_dx(*args), size)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elements_and_channels(shape, dtype):
    a, b = draw(shape, dtype), draw(shape, dtype, 1)
    terms = a[:, :1].size
    np.testing.assert_array_equal(
        native.activate("relu", a), plain.activate("relu", a), strict=True
    )
    np.testing.assert_array_equal(
        native.activate_dx("relu", b, a), plain.activate_dx("relu", b, a), strict=True
    )
    np.testing.assert_array_equal(native.mul(a, b), plain.mul(a, b), strict=True)
    close(native.bias_grad(a), plain.bias_grad(a), terms)
    close(native.channel_sums(a), plain.channel_sums(a), terms)
    close(native.channel_sums(a, b), plain.channel_sums(a, b), terms)


def test_relu_keeps_nan(dtype):
    assert np.isnan(native.activate("relu", np.array([np.nan], dtype)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", (0, 3, 130))
def test_dropout_draws_the_same_masks(shape, first, dtype):
    positions = np.arange(shape[0], dtype=np.int64) * 1000003
    args = draw(shape, dtype), 0.3, 7, 2, 2**33 + 5, positions, first
    for got, expected in zip(native.dropout(*args), plain.dropout(*args), strict=True):
        np.testing.assert_array_equal(got, expected, strict=True)


@pytest.mark.parametrize("n, classes", [(7, 10), (50, 3), (1, 1), (0, 4)])
def test_softmax_xent(n, classes, dtype):
    logits = 30 * draw((n, classes), dtype)
    labels = np.arange(n) % classes
    results = native.softmax_xent(logits, labels), plain.softmax_xent(logits, labels)
    # the exponential's relative error grows with its argument, here up to about 200
    for got, expected in zip(*results, strict=True):
        close(got, expected, 200**2)


UPDATES = {
    "sgd": (0.1, 0.9, 0.01),
    "nesterov": (0.1, 0.9, 0.01),
    "descend": (0.1, 0.01),
    "adam": ((0.9, 0.99), 0.01, 3),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("shape", [(3, 5), (70000,), (0, 4)], ids=str)
@pytest.mark.parametrize("contiguous", (True, False))
def test_update(name, shape, contiguous, dtype):
    arrays = [draw(shape, dtype, seed) for seed in range(2 if name == "descend" else 3)]
    arrays[1] = abs(arrays[1])  # adam takes its root
    if not contiguous:
        arrays[0] = np.repeat(arrays[0], 2, axis=-1)[..., ::2]
    expected = [a.copy() for a in arrays]
    getattr(plain, name)(*expected, *UPDATES[name])
    getattr(native, name)(*arrays, *UPDATES[name])
    for found, each in zip(arrays, expected, strict=True):
        close(found, each)


def test_numpys_products_have_no_more_threads_than_the_kernels():
    for count in (2, 1):
        native.set_threads(count)
        np.ones((2, 2)) @ np.ones((2, 2))  # some libraries start with their first product
        counts = {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}
        assert counts <= {1, count}


def test_strided_arrays_are_taken(dtype):
    x = draw((6, 9, 10, 4), dtype).transpose(3, 0, 2, 1)[:, :, ::-1, ::2]
    w = np.asfortranarray(draw((5, 6, 3, 3), dtype))
    args = (Window.of(ONE, ONE, ONE),)
    close(native.conv2d(x, w, None, *args), plain.conv2d(x, w, None, *args), w[:1].size)
    np.testing.assert_array_equal(native.activate("relu", x), plain.activate("relu", x))
    close(native.channel_sums(x), plain.channel_sums(x), x[:, :1].size)


def test_bits_do_not_depend_on_threads_or_on_numpys():
    x, w = draw((33, 5, 17, 19), "float32"), draw((40, 5, 3, 3), "float32")
    dy = draw((33, 40, 17, 19), "float32", 1)
    geometry = ONE, ONE, ONE

    def bits():
        rows, weights = x.reshape(33, -1), draw((500, x[0].size), "float32")
        return (
            native.conv2d(x, w, None, Window.of(*geometry)).tobytes(),
            native.conv2d_dx(dy, w, x.shape, Window.of(*geometry)).tobytes(),
            native.conv2d_dw(x, dy, w.shape, Window.of(*geometry)).tobytes(),
            native.linear(rows, weights, None).tobytes(),
            native.channel_sums(x).tobytes(),
            *(a.tobytes() for a in native.moments(x)),
            *(a.tobytes() for a in native.normalise_sums(x, x, x[0, :, 0, 0])),
            native.conv2d(x, w[:5, :1], None, Window.of(*geometry, 5)).tobytes(),
            native.conv2d_dw(x, x, (5, 1, 3, 3), Window.of(*geometry, 5)).tobytes(),
            native.lrn_dx(x, x, x, x * x + 1, 3, 0.1, 0.75).tobytes(),
            native.avgpool_dx(x, (33, 5, 19, 21), *pool((3, 3), ONE, NONE), False, True).tobytes(),
        )

    native.set_threads(1)
    expected = bits()
    for count in (1, 2, 5):
        native.set_threads(count)
        plain.set_threads(count)
        assert bits() == expected, f"{count} threads"
    plain.set_threads(1)


X, W = np.zeros((2, 4, 6, 6), np.float32), np.zeros((6, 4, 3, 3), np.float32)
Y = np.zeros((2, 6, 4, 4), np.float32)
ROWS, FULL = np.zeros((2, 4), np.float32), np.zeros((3, 4), np.float32)
POOLED, PLACES = np.zeros((2, 4, 3, 3), np.float32), np.zeros((2, 4, 3, 3), np.uint8)
AT = np.arange(2)
HALF, DOUBLE = X.astype(np.float16), X.astype(np.float64)
FROZEN = FULL.copy()
FROZEN.flags.writeable = False

# function, arguments, the argument that the message must name
BAD = [
    ("conv2d", (HALF, W, None, Window.of(ONE, NONE, ONE)), "x"),
    ("conv2d", (X.tolist(), W, None, Window.of(ONE, NONE, ONE)), "x"),
    ("conv2d", (X[0], W, None, Window.of(ONE, NONE, ONE)), "x"),
    ("conv2d", (X[:, :, :1], W, None, Window.of(ONE, NONE, ONE)), "x"),
    ("conv2d", (DOUBLE, W, None, Window.of(ONE, NONE, ONE)), "w"),
    ("conv2d", (X, W[:, :3], None, Window.of(ONE, NONE, ONE)), "w"),
    ("conv2d", (X, W[..., :0], None, Window.of(ONE, NONE, ONE)), "w"),
    ("conv2d", (X, W, np.zeros(5, np.float32), Window.of(ONE, NONE, ONE)), "b"),
    ("conv2d", (X, W, None, Window.of((0, 1), NONE, ONE)), "stride"),
    ("conv2d", (X, W, None, Window.of(ONE, (-1, 0), ONE)), "padding"),
    ("conv2d", (X, W, None, Window.of(ONE, NONE, (1, 0))), "dilation"),
    ("conv2d", (X, W, None, Window.of(ONE, NONE, ONE, 4)), "groups"),
    ("conv2d", (X, W, None, Window.of((1, 1, 1), NONE, ONE)), "stride"),
    ("conv2d", (X, W, None, Window(ONE, ((0, 0),), ONE)), "padding"),
    ("conv2d", (X, W, None, Window.of(ONE, (0.5, 0), ONE)), "padding"),
    ("conv2d_dx", (Y.astype(np.float64), W, X.shape, Window.of(ONE, NONE, ONE)), "dy"),
    ("conv2d_dx", (Y, W[0], X.shape, Window.of(ONE, NONE, ONE)), "w"),
    ("conv2d_dw", (HALF, Y, W.shape, Window.of(ONE, NONE, ONE)), "x"),
    ("conv2d_dw", (X, Y, W.shape[1:], Window.of(ONE, NONE, ONE)), "w_shape"),
    ("conv2d_dx", (Y[:1], W, X.shape, Window.of(ONE, NONE, ONE)), "dy"),
    ("conv2d_dx", (Y, W, X.shape[1:], Window.of(ONE, NONE, ONE)), "x_shape"),
    ("conv2d_dw", (X, Y[:, :5], W.shape, Window.of(ONE, NONE, ONE)), "dy"),
    ("conv2d_dw", (X, Y, (6, 4, 3, -3), Window.of(ONE, NONE, ONE)), "w_shape"),
    ("linear", (ROWS, FULL[:, :3], None), "w"),
    ("linear", (ROWS, FULL, np.zeros(4, np.float32)), "b"),
    ("linear_dx", (np.zeros((2, 5), np.float32), FULL), "w"),
    ("linear_dw", (ROWS, np.zeros((3, 5), np.float32)), "dy"),
    ("linear", (X, FULL, None), "x"),
    ("linear_dx", (FULL[0], FULL), "dy"),
    ("linear_dw", (HALF[0, 0], ROWS), "x"),
    ("linear_dw", (ROWS, ROWS, np.zeros((3, 4), np.float32)), "dw"),
    ("linear_dw", (ROWS, ROWS, np.zeros((4, 4), np.float32)[:, ::-1]), "dw"),
    ("bias_grad", (HALF,), "dy"),
    ("channel_sums", (X[0, 0, 0],), "a"),
    ("channel_sums", (X, X[:1]), "b"),
    ("maxpool", (X, *pool((8, 2), ONE, NONE), False), "x"),
    ("maxpool", (X, *pool((0, 2), ONE, NONE), False), "kernel"),
    ("maxpool", (X, *pool((2, 2), ONE, (2, 0)), False), "padding"),
    ("maxpool_dx", (POOLED, PLACES[:1], X.shape, *pool((2, 2), (2, 2), NONE)), "argmax"),
    ("maxpool_dx", (POOLED, PLACES + 4, X.shape, *pool((2, 2), (2, 2), NONE)), "argmax"),
    ("maxpool_dx", (POOLED, PLACES, (2, 4, 5, 5), *pool((1, 1), (3, 3), NONE)), "argmax"),
    ("maxpool_dx", (POOLED, PLACES.astype(float), X.shape, *pool((2, 2), (2, 2), NONE)), "argmax"),
    ("maxpool_dx", (POOLED, PLACES, (3, 4, 6, 6), *pool((2, 2), (2, 2), NONE)), "dy"),
    ("maxpool", (X[0], *pool((2, 2), ONE, NONE), False), "x"),
    ("maxpool_dx", (POOLED, PLACES, X.shape, *pool((2,), (2, 2), NONE)), "kernel"),
    ("avgpool", (HALF, *pool((2, 2), ONE, NONE), False, True), "x"),
    ("avgpool", (X, *pool((2, 2), (1, 0), NONE), False, True), "stride"),
    ("avgpool_dx", (POOLED, X.shape[1:], *pool((2, 2), (2, 2), NONE), False, True), "x_shape"),
    ("avgpool_dx", (POOLED, X.shape, *pool((3, 3), (2, 2), NONE), False, True), "dy"),
    ("lrn", (X, 0, 1e-4, 0.75, 1.0), "size"),
    ("lrn", (HALF, 5, 1e-4, 0.75, 1.0), "x"),
    ("lrn_dx", (DOUBLE, X, X, X, 5, 1e-4, 0.75), "dy"),
    ("lrn_dx", (X, X, X[:1], X, 5, 1e-4, 0.75), "y"),
    ("lrn_dx", (X, X, X, DOUBLE, 5, 1e-4, 0.75), "scale"),
    ("activate", ("relu", X.astype(int)), "x"),
    ("activate", ("relu", X.astype(">f4")), "x"),
    ("activate_dx", ("relu", X, X[:1]), "y"),
    ("activate_dx", ("relu", HALF, X), "dy"),
    ("mul", (HALF, X), "x"),
    ("mul", (X, DOUBLE), "mask"),
    ("moments", (HALF,), "x"),
    ("moments", (FULL[0],), "x"),
    ("normalise", (FULL[0], FULL[0], FULL[0], FULL[0]), "x"),
    ("normalise", (X, FULL[0, :3], FULL[0], FULL[0]), "mean"),
    ("normalise", (X, FULL[0], FULL[0, :3], FULL[0]), "scale"),
    ("normalise", (X, FULL[0], FULL[0], FULL[0, :3]), "shift"),
    ("normalise", (X, FULL[:2], FULL[0], FULL[:2]), "scale"),
    ("normalise", (X, FULL[0], FULL[0], FULL[0].astype(float)), "shift"),
    ("normalise_sums", (X[:1], X, FULL[0]), "dy"),
    ("normalise_sums", (X, X, FULL), "mean"),
    ("normalise_dx", (DOUBLE, X, FULL[0], FULL), "dy"),
    ("normalise_dx", (X, X, FULL[0, :3], FULL), "mean"),
    ("normalise_dx", (X, X, FULL[0], FULL[:2]), "factors"),
    ("dropout", (ROWS, 1.0, 0, 0, 0, AT, 0), "rate"),
    ("dropout", (HALF, 0.5, 0, 0, 0, AT, 0), "x"),
    ("dropout", (ROWS, 0.5, 0, 0, 0, AT[:1], 0), "positions"),
    ("dropout", (ROWS, 0.5, 0, 0, 0, AT, -1), "first"),
    ("softmax_xent", (ROWS, AT[:1]), "labels"),
    ("softmax_xent", (ROWS, AT + 3), "labels"),
    ("softmax_xent", (ROWS, AT.astype(float)), "labels"),
    ("softmax_xent", (ROWS[0], AT), "logits"),
    ("sgd", (FROZEN, FULL, FULL, 0.1, 0.9, 0.0), "w"),
    ("sgd", (FULL, FULL[:2], FULL, 0.1, 0.9, 0.0), "v"),
    ("sgd", (FULL, FULL, FULL.astype(np.float16), 0.1, 0.9, 0.0), "g"),
    ("sgd", (FULL, FULL.astype(np.float64), FULL, 0.1, 0.9, 0.0), "v"),
    ("nesterov", (FROZEN, FULL, FULL, 0.1, 0.9, 0.0), "w"),
    ("descend", (FULL, FULL[:2], 0.1, 0.0), "w"),
    ("adam", (FULL, FULL, FROZEN, (0.9, 0.99), 0.1, 1), "g"),
    ("adam", (FULL, FULL[:2], FULL, (0.9, 0.99), 0.1, 1), "v"),
    ("set_threads", (0,), "count"),
]


@pytest.mark.parametrize("name, args, blamed", BAD)
def test_bad_arguments_are_named(name, args, blamed):
    with pytest.raises(ValueError, match=rf"\b{blamed}\b"):
        getattr(native, name)(*args)
