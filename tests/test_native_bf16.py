"""Products in bf16: the kernels of this CPU, and plain C++ ones that do the same everywhere."""

import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import compare, make, train
from test_native import CONVOLUTIONS, NONE, ONE

from mpicnn.devices.choice import Device
from mpicnn.errors import DeviceError
from mpicnn.ops import numpy as plain

native = pytest.importorskip(
    "mpicnn.ops.native", reason="the native kernels are not built here", exc_type=ImportError
)
from mpicnn.ops._native_core import HAS_BLAS, core  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402

pytestmark = pytest.mark.skipif(not HAS_BLAS, reason="convolutions need a BLAS")

# n, c, o: tiles hold 16 rows or columns and 32 terms, kernels 32 rows and columns and 512 terms
LINEAR = [(1, 1, 1), (16, 32, 16), (17, 33, 31), (5, 7, 300), (70, 513, 33), (33, 1100, 48)]
LARGEST = np.finfo(np.float32).max


@pytest.fixture(params=core.bf16_kernels())
def kernel(request):
    core.set_products(request.param)
    yield request.param
    native.set_threads(1)
    core.set_products("float32")


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def rounded(x):
    """Return x with 8 significant bits, to nearest, ties to even, in float64."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(fraction * 256), exponent - 8)


def distance(got, expected):
    """Return the relative error in the Euclidean norm; 0 where both have no elements or are 0."""
    return np.linalg.norm(got - expected) / max(np.linalg.norm(expected), np.finfo(float).tiny)


def check(got, products, *operands):
    """Compare with `products` of rounded operands, then of the operands as they are.

    Products of rounded operands are exact in float32; their sums have errors of some eps = 6e-8
    each, which for independent signs stay below ten of them. Rounding moves an operand by up to
    2**-9 and by 2**-9 / sqrt(3) = 1.1e-3 in the mean, two operands by 1.6e-3; sums of products
    with random signs have errors of the same ratio.
    """
    assert got.dtype == np.float32
    assert distance(got, products(*(rounded(a) for a in operands))) <= 1e-6
    assert distance(got, products(*(a.astype(np.float64) for a in operands))) <= 1e-2


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("threads", (1, 3))
def test_convolution(case, threads, kernel):
    native.set_threads(threads)
    x_shape, w_shape, *geometry = case
    window = Window.of(*geometry)
    x, w, b = draw(x_shape), draw(w_shape), draw(w_shape[:1])
    y = native.conv2d(x, w, b, window)
    dy = draw(y.shape, 1)
    check(y, lambda x, w: plain.conv2d(x, w, b.astype(float), window), x, w)
    np.testing.assert_array_equal(native.conv2d(x, w, b, window, True), native.activate("relu", y))
    check(
        native.conv2d_dx(dy, w, x_shape, window),
        lambda dy, w: plain.conv2d_dx(dy, w, x_shape, window), dy, w,
    )  # fmt: skip
    check(
        native.conv2d_dw(x, dy, w_shape, window),
        lambda x, dy: plain.conv2d_dw(x, dy, w_shape, window), x, dy,
    )  # fmt: skip


@pytest.mark.parametrize("n, c, o", LINEAR)
@pytest.mark.parametrize("threads", (1, 3))
def test_linear(n, c, o, threads, kernel):
    native.set_threads(threads)
    x, w, b, dy = draw((n, c)), draw((o, c)), draw((o,)), draw((n, o), 1)
    y = native.linear(x, w, b)
    check(y, lambda x, w: plain.linear(x, w, b.astype(float)), x, w)
    np.testing.assert_array_equal(native.linear(x, w, b, True), native.activate("relu", y))
    check(native.linear_dx(dy, w), plain.linear_dx, dy, w)
    check(native.linear_dw(x, dy), plain.linear_dw, x, dy)
    dw = draw((o, c), 2)
    check(native.linear_dw(x, dy, dw.copy()), lambda x, dy: dw + plain.linear_dw(x, dy), x, dy)


def test_operands_are_rounded_to_nearest_even(kernel):
    """Times 1, the product is the rounded operand itself."""
    low, tie = 1 + 2.0**-8 - 2.0**-20, 2.0**-8
    x = np.array([0.0, -0.0, 1 + tie, 1 + 3 * tie, low, -low, -3.14159, 1e-30, 3e38], np.float32)
    expected = rounded(x).astype(np.float32)
    assert list(expected[2:5]) == [1, 1 + 4 * tie, 1]
    special = np.array([np.inf, -np.inf, np.nan, LARGEST, -LARGEST], np.float32)
    # what is nearer to the next power of two than to the largest number of 8 bits is infinite
    x, expected = (np.concatenate(a) for a in (
        (x, special), (expected, np.array([np.inf, -np.inf, np.nan, np.inf, -np.inf], np.float32)))
    )  # fmt: skip
    one = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(native.linear(x[:, None], one, None)[:, 0], expected)
    np.testing.assert_array_equal(native.linear(one, x[:, None], None)[0], expected)
    np.testing.assert_array_equal(
        native.conv2d(x[None, None, None], one[None, None], None, Window.of(ONE, NONE, ONE))[
            0, 0, 0
        ],
        expected,
    )


def test_every_nan_stays_one(kernel):
    # all but the lowest bits of these are cut off: what is left must not be an infinity
    x = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    one = np.ones((1, 1), np.float32)
    assert np.isnan(native.linear(x[:, None], one, None)).all()
    assert np.isnan(
        native.conv2d(x[None, None, None], one[None, None], None, Window.of(ONE, (1, 1), ONE))
    )[0, 0, 1, 1:5].all()


def test_bits_do_not_depend_on_threads_or_on_the_call(kernel):
    x, w, dy = draw((33, 5, 17, 19)), draw((40, 5, 3, 3)), draw((33, 40, 17, 19), 1)
    rows, weights = x.reshape(33, -1), draw((500, x[0].size))

    def bits():
        return [
            array.tobytes()
            for array in (
                native.conv2d(x, w, None, Window.of(ONE, ONE, ONE)),
                native.conv2d_dx(dy, w, x.shape, Window.of(ONE, ONE, ONE)),
                native.conv2d_dw(x, dy, w.shape, Window.of(ONE, ONE, ONE)),
                native.linear(rows, weights, None),
                native.linear_dw(rows, rows),
            )
        ]

    expected = bits()
    for count in (1, 2, 5):
        native.set_threads(count)
        assert bits() == expected, f"{count} threads"


def test_all_kernels_agree():
    """They add in orders of their own: see `check`."""
    x, w = draw((70, 1100)), draw((50, 1100))
    found = []
    for name in core.bf16_kernels():
        core.set_products(name)
        found.append(native.linear(x, w, None))
    core.set_products("float32")
    for y in found[1:]:
        assert distance(y, found[0]) <= 1e-6


def test_what_computes_in_bf16(kernel):
    geometry = ONE, (2, 2), ONE
    deep = native.conv2d_methods(
        (64, 150, 16, 16), (800, 150, 5, 5), Window.of(*geometry, 1), np.float32
    )
    assert deep == ("im2col bf16",) * 3
    apart = native.conv2d_methods(
        (4, 32, 9, 9), (32, 1, 5, 5), Window.of(*geometry, 32), np.float32
    )
    assert apart == ("depthwise bf16",) * 3
    # float64 is asked for where no digit is to be lost
    x, w = draw((3, 5)).astype(float), draw((4, 5)).astype(float)
    assert distance(native.linear(x, w, None), plain.linear(x, w, None)) <= 1e-15


def test_precisions_that_the_cpu_lacks_are_refused():
    with pytest.raises(DeviceError, match="tf32.*float32"):
        native.set_precision("tf32")
    if core.bf16_kernels() == ["bf16-portable"]:
        with pytest.raises(DeviceError, match="bf16.*AVX512-BF16 or AMX-BF16.*float32"):
            native.set_precision("bf16")
    else:
        native.set_precision("bf16")
    native.set_precision("float32")
    assert native.linear(*(np.full((1, 1), 1 + 2.0**-20, np.float32),) * 2, None) > 1
    with pytest.raises(ValueError, match="fp8"):
        core.set_products("fp8")


@pytest.mark.parametrize(
    "name, shares", [("owt", (3, 1)), ("filter", (1, 0, 3)), ("mixed", (1, 1))]
)
def test_plans_train_as_one_rank(name, shares):
    core.set_products("bf16-portable")

    def run(name, shares):
        plan = make(name, (len(shares),), (shares,), "a", "allreduce")
        return run_ranks(
            len(shares),
            lambda comm: train(comm, plan, np.float32, device=Device(native), steps=20),
        )

    try:
        # Sums of float32 in another order differ by 1e-7, which now and then rounds an operand to
        # its other neighbour, 2**-8 away: a few in 20 steps. Rounding them all changes the weights
        # by 40 percent.
        compare(run(name, shares), run("data", (1,)), 1e-2)
    finally:
        core.set_products("float32")
