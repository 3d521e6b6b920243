"""Convolutions straight from padded lines, against float64, at the edges of lines and blocks."""

import numpy as np
import pytest

from mpicnn.ops import numpy as plain

native = pytest.importorskip(
    "mpicnn.ops.native", reason="the native kernels are not built here", exc_type=ImportError
)
from mpicnn.ops._native_core import HAS_BLAS, core  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402

pytestmark = pytest.mark.skipif(not HAS_BLAS, reason="convolutions need a BLAS")

ONE, NONE = (1, 1), (0, 0)

# x, w, stride, padding, dilation, groups. Forward, vectors are of 8 pixels, blocks of up to 6
# outputs; for dw, vectors of 8 outputs, two at a time, blocks of up to 8 taps, bands of 512 pixels.
CASES = {
    "one vector": ((2, 3, 5, 8), (4, 3, 3, 3), ONE, ONE, ONE, 1),
    "a pixel more": ((3, 1, 6, 9), (7, 1, 1, 1), ONE, (1, 0), ONE, 1),
    "two vectors, less one": ((2, 3, 4, 15), (6, 3, 3, 3), ONE, ONE, ONE, 1),
    "two vectors": ((2, 3, 4, 16), (13, 3, 5, 5), ONE, (2, 2), ONE, 1),
    "three vectors and one pixel": ((2, 2, 7, 25), (37, 2, 3, 2), ONE, (1, 0), ONE, 1),
    "many lines": ((2, 3, 90, 40), (5, 3, 5, 5), ONE, (2, 2), ONE, 1),
    "strided": ((2, 3, 37, 41), (8, 3, 7, 7), (2, 2), (3, 3), ONE, 1),
    "strided unevenly": ((2, 3, 30, 70), (5, 3, 4, 11), (3, 4), (0, 2), ONE, 1),
    "stride over kernel": ((2, 3, 8, 50), (5, 3, 2, 2), (5, 3), ONE, ONE, 1),
    "dilated": ((2, 3, 20, 33), (11, 3, 3, 3), ONE, (2, 3), (2, 3), 1),
    "dilated and strided": ((2, 3, 20, 63), (4, 3, 3, 4), (2, 3), (1, 4), (3, 2), 1),
    "more padding than image": ((2, 3, 2, 3), (4, 3, 4, 4), ONE, (5, 7), ONE, 1),
    "groups": ((3, 6, 9, 17), (14, 3, 3, 3), ONE, ONE, ONE, 2),
    "many outputs": ((17, 2, 5, 9), (41, 2, 3, 3), ONE, ONE, ONE, 1),
    "a line of more than a band": ((2, 1, 4, 600), (17, 1, 3, 3), ONE, ONE, ONE, 1),
    "many channels": ((2, 70, 24, 26), (5, 70, 3, 3), ONE, ONE, ONE, 1),
}


def draw(shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def compute(case, x, w, b, relu=False, method="lines"):
    y = np.full(plain.conv2d(x[:1], w, None, Window.of(*case[2:])).shape, np.nan, np.float32)
    y = np.repeat(y, len(x), axis=0)  # NaN shows what is not written
    core.conv2d(core.ConvShape(x.shape, w.shape, *case[2:]), x, w, b, relu, y, method)
    return y


@pytest.fixture(params=(1, 3), ids="{} threads".format, autouse=True)
def threads(request):
    native.set_threads(request.param)
    yield
    native.set_threads(1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_convolution(case):
    x, w, b = draw(case[0]), draw(case[1], 1), draw(case[1][:1], 2)
    y = compute(case, x, w, b)
    expected = plain.conv2d(*(a.astype(np.float64) for a in (x, w, b)), Window.of(*case[2:]))
    # sums of products in float32 have errors of some eps = 6e-8 each
    assert np.linalg.norm(y - expected) <= 2e-6 * np.linalg.norm(expected)
    np.testing.assert_array_equal(compute(case, x, w, b, relu=True), native.activate("relu", y))
    without = compute(case, x, w, None)
    np.testing.assert_allclose(without + b[:, None, None], y, rtol=1e-6, atol=1e-6)
    native.set_threads(2)
    np.testing.assert_array_equal(compute(case, x, w, b), y)


def test_nothing_outside_the_window_is_read():
    case = CASES["strided unevenly"]
    x, w = draw(case[0]), draw(case[1], 1)
    y = compute(case, x, w, None)
    x[:, :, 15, 30] = np.nan
    (sh, sw), (ph, pw) = case[2:4]
    lines, columns = np.arange(y.shape[2]) * sh - ph, np.arange(y.shape[3]) * sw - pw
    seen = ((lines <= 15) & (lines > 15 - w.shape[2]))[:, None]
    seen = seen & ((columns <= 30) & (columns > 30 - w.shape[3]))
    assert 0 < seen.sum() < seen.size
    again = compute(case, x, w, None)
    np.testing.assert_array_equal(np.isnan(again), np.broadcast_to(seen, y.shape))
    np.testing.assert_array_equal(again[:, :, ~seen], y[:, :, ~seen])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_weight_gradient(case):
    x, w = draw(case[0]), draw(case[1], 1)
    dy = draw(plain.conv2d(x, w, None, Window.of(*case[2:])).shape, 2)
    shape = core.ConvShape(x.shape, w.shape, *case[2:])
    dw, again = np.full_like(w, np.nan), np.full_like(w, np.nan)
    core.conv2d_dw(shape, x, dy, dw, "lines")
    expected = plain.conv2d_dw(
        *(a.astype(np.float64) for a in (x, dy)), w.shape, Window.of(*case[2:])
    )
    assert np.linalg.norm(dw - expected) <= 2e-6 * np.linalg.norm(expected)
    native.set_threads(2)
    core.conv2d_dw(shape, x, dy, again, "lines")
    np.testing.assert_array_equal(again, dw)


def test_input_gradient_is_that_of_columns():
    w, dy = draw((5, 3, 3, 3), 1), draw((3, 5, 9, 17), 2)
    shape = core.ConvShape((3, 3, 9, 17), w.shape, ONE, ONE, ONE, 1)
    dx = np.empty((3, 3, 9, 17), np.float32)
    core.conv2d_dx(shape, dy, w, dx, "lines")
    np.testing.assert_array_equal(dx, native.conv2d_dx(dy, w, dx.shape, Window.of(ONE, ONE, ONE)))


def test_choice_of_lines():
    def methods(x, w, stride=ONE, dtype="float32"):
        return native.conv2d_methods(x, w, Window.of(stride, NONE, ONE), dtype)

    first = (64, 3, 36, 36), (32, 3, 5, 5)
    assert methods(*first) == ("lines", "im2col", "lines")
    assert methods(*first, dtype="float64") == ("im2col",) * 3
    assert methods((8, 3, 230, 230), (64, 3, 7, 7), (2, 2)) == ("lines", "im2col", "lines")
    # forward, what a line sees has to stay in the first cache
    assert methods((8, 9, 224, 224), (64, 9, 7, 7), (2, 2))[::2] == ("im2col", "lines")
    assert methods((64, 3, 9, 9), (32, 3, 3, 3))[0] != "lines"  # lines of 7 pixels
    assert methods((64, 256, 28, 28), (64, 256, 1, 1))[0] == "im2col"
    for x, w in (((3, 9, 9), (4, 3, 3, 3)), ((3, 9, 9), (4, 3, 1, 1)), ((3, 9, 9), (3, 3, 2, 2))):
        x = (1, *x)
        with pytest.raises(ValueError, match="none is called lines"):
            compute((x, w, ONE, NONE, ONE, 1), draw(x), draw(w), None)
