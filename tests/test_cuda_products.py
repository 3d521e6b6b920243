"""Fully connected products of the GPU backend, and the precisions that it multiplies in."""

import numpy as np
import pytest

from mpicnn.errors import DeviceError

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
cupy = pytest.importorskip("cupy")

from mpicnn.ops import _cuda_arrays, _cuda_gemm, _cuda_precision, _cuda_rounded  # noqa: E402

# Relative to the norm of the result; an operand is rounded by up to 2**-24, 2**-11 and 2**-8.
TOLERANCE = {"float32": 2e-6, "float64": 1e-14, "tf32": 1e-3, "bf16": 1e-2}


@pytest.fixture(params=TOLERANCE)
def precision(request):
    cuda.set_precision(request.param)
    return request.param


def draw(shape, dtype="float32", seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def dtype_of(precision):
    return "float64" if precision == "float64" else "float32"


def distance(got, expected):
    assert got.shape == expected.shape
    return np.linalg.norm(got.get() - expected) / max(np.linalg.norm(expected), 1e-300)


@pytest.mark.parametrize("n, c, o", [(7, 13, 5), (1, 5, 1), (64, 40, 24), (0, 3, 2), (3, 0, 2)])
def test_fully_connected(precision, n, c, o):
    dtype = dtype_of(precision)
    x, w, b, dy, dw = (draw(s, dtype) for s in ((n, c), (o, c), (o,), (n, o), (o, c)))
    exact = [array.astype("float64") for array in (x, w, b, dy, dw)]
    sums, least = cupy.asarray(dw), TOLERANCE[precision]

    def every_other(a):
        return cupy.asarray(a.repeat(2, 1))[:, ::2]

    for order in (every_other, cupy.asfortranarray, cupy.asarray):  # strided, transposed, plain
        x, w, dy = (order(array.astype(dtype)) for array in (exact[0], exact[1], exact[3]))
        y = cuda.linear(x, w, cupy.asarray(b))
        assert distance(y, exact[0] @ exact[1].T + exact[2]) <= least
        assert distance(cuda.linear_dx(dy, w), exact[3] @ exact[1]) <= least
        assert cuda.linear_dw(x, dy, sums) is sums
    assert distance(sums, exact[4] + 3 * exact[3].T @ exact[0]) <= least


def test_rows_may_be_one_and_the_same(precision):
    row, w = draw((1, 6), dtype_of(precision)), draw((5, 6), dtype_of(precision))
    x = cupy.broadcast_to(cupy.asarray(row), (4, 6))
    y = np.repeat(row.astype("float64") @ w.T.astype("float64"), 4, 0)
    assert distance(cuda.linear(x, cupy.asarray(w), None), y) <= TOLERANCE[precision]


def test_bf16_is_the_nearest_value():
    ulp = 2.0**-7
    given = [1, 1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp, -3.4e38, np.inf, 2.0**-133, 0, -0.0]
    expected = [1, 1, 1 + 2 * ulp, 1 + ulp, -np.inf, np.inf, 2.0**-133, 0, -0.0]
    given = np.array([*given, np.nan, *given], np.float32)
    bits = _cuda_rounded.bf16_rows(cupy.asarray(given[None]), 2, 24).get()
    found = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(found[0, : given.size], [*expected, np.nan, *expected])
    np.testing.assert_array_equal(np.signbit(found[0, :9]), np.signbit(expected))
    assert not found[0, given.size :].any() and not found[1].any()


def test_wrong_arguments_are_told():
    x, y = cupy.asarray(draw((5, 5))), cupy.asarray(draw((3, 3)))
    with pytest.raises(ValueError, match="no product"):
        cuda.linear(x, y, None)
    with pytest.raises(ValueError, match="no product"):
        cuda.linear(x, x.astype("float64"), None)
    with pytest.raises(ValueError, match="b must be"):
        cuda.linear(x, x, y[0])
    with pytest.raises(ValueError, match="dw must have"):
        cuda.linear_dw(x, x, cupy.zeros((5, 5), "float32").T)
    with pytest.raises(ValueError, match="precision must be one of"):
        cuda.set_precision("fp16")


def test_old_gpus_have_no_tensor_cores(monkeypatch):
    class Device:
        compute_capability = "75"

    monkeypatch.setattr(_cuda_precision.cupy.cuda, "Device", Device)
    cuda.set_precision("float64")
    for precision in ("tf32", "bf16"):
        with pytest.raises(DeviceError, match=f"precision {precision}: .* 7.5"):
            cuda.set_precision(precision)
    assert _cuda_precision.settings.precision == "float64"


@pytest.mark.parametrize("seed", range(40))
def test_what_an_engine_writes_in_bf16_is_finished(seed):
    """Bias, ReLU, and the channels and rows that were added left out, with the bits of float32."""
    rng = np.random.default_rng(seed)
    n, o, h, w = (int(k) for k in rng.integers(1, [4, 40, 6, 6]))
    more = tuple(int(k) for k in rng.integers(0, [3, 9]))
    values = rng.standard_normal((n + more[0], o + more[1], h, w)).astype("float32")
    values[rng.random(values.shape) < 0.05] = np.nan
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    x = _cuda_arrays.cells(cupy.asarray(bits))
    y = _cuda_arrays.empty_cells((n, o, h, w), np.float32)
    b = draw((o,)) if rng.random() < 0.7 else None
    relu = bool(rng.random() < 0.5)
    _cuda_gemm.finish_bf16(x, y, None if b is None else cupy.asarray(b), relu)
    expected = (bits[:n, :o].astype(np.uint32) << 16).view(np.float32)
    expected = expected if b is None else expected + b[:, None, None]
    expected = np.where(expected < 0, np.float32(0), expected) if relu else expected
    np.testing.assert_array_equal(y.get(), expected)


def test_a_bias_must_fit():
    x = _cuda_arrays.empty_cells((2, 8, 3, 3), np.uint16)
    y = _cuda_arrays.empty_cells((2, 5, 3, 3), np.float32)
    for b in (cupy.zeros(8, "float32"), cupy.zeros(5, "float64")):
        with pytest.raises(ValueError, match="b must be"):
            _cuda_gemm.finish_bf16(x, y, b, False)
