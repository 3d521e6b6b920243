"""In bf16 an array is rounded once for all products that read it, and they give the same bits."""

import numpy as np
import pytest
from mpi4py import MPI

cuda = pytest.importorskip("mpicnn.ops.cuda", reason="CuPy is not installed", exc_type=ImportError)
cupy = pytest.importorskip("cupy")

from mpicnn.comm.mesh import Mesh  # noqa: E402
from mpicnn.division.compile import compile  # noqa: E402
from mpicnn.division.presets import preset  # noqa: E402
from mpicnn.layers import Conv, Flatten, Linear, ReLU  # noqa: E402
from mpicnn.models import Model, freeze  # noqa: E402
from mpicnn.ops import _cuda_conv  # noqa: E402
from mpicnn.ops._cuda_rounded import Rounded  # noqa: E402
from mpicnn.ops.window import Window  # noqa: E402
from mpicnn.step.executor import Executor  # noqa: E402
from mpicnn.step.state import initial_state  # noqa: E402


def some_case(rng):
    """Return shapes of x and w and a window, by chance: groups, strides, padding of one side."""
    groups = int(rng.choice([1, 1, 2, 3]))
    n, c, o = (int(k) for k in rng.integers(1, [4, 12, 12]))
    kernel = tuple(int(k) for k in rng.integers(1, 4, 2))
    stride = tuple(int(k) for k in rng.integers(1, 3, 2))
    padding = tuple(int(k) for k in rng.integers(0, 3, 4))
    space = tuple(int(k) for k in rng.integers(4, 9, 2))
    window = Window.of(stride, padding, (1, 1), groups)
    return (n, c * groups, *space), (o * groups, c, *kernel), window


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_convolutions_of_what_is_rounded_have_the_same_bits(fresh, monkeypatch, seed, engine):
    monkeypatch.setattr(
        _cuda_conv, "_seconds", lambda way, *_: float(hasattr(way, "func") == engine)
    )
    cuda.set_precision("bf16")
    rng = np.random.default_rng(seed)
    x_shape, w_shape, window = some_case(rng)
    x, w = (cupy.asarray(rng.standard_normal(s).astype("f4")) for s in (x_shape, w_shape))
    b = cupy.asarray(rng.standard_normal(w_shape[0]).astype("f4"))
    y = cuda.conv2d(x, w, b, window, True)
    dy = cupy.asarray(rng.standard_normal(y.shape).astype("f4"))
    dx, dw = cuda.conv2d_dx(dy, w, x_shape, window), cuda.conv2d_dw(x, dy, w_shape, window)
    once = [cuda.operand(a) for a in (x, w, dy)]
    assert all(isinstance(a, Rounded) for a in once)
    for a in (x, w, dy):
        a.fill(np.nan)  # nobody reads it any more
    x, w, dy = once
    np.testing.assert_array_equal(cuda.conv2d(x, w, b, window, True).get(), y.get())
    np.testing.assert_array_equal(cuda.conv2d_dx(dy, w, x_shape, window).get(), dx.get())
    np.testing.assert_array_equal(cuda.conv2d_dw(x, dy, w_shape, window).get(), dw.get())


@pytest.mark.parametrize("seed", range(6))
def test_fully_connected_layers_of_what_is_rounded_have_the_same_bits(seed):
    cuda.set_precision("bf16")
    rng = np.random.default_rng(seed)
    n, c, o = (int(k) for k in rng.integers(1, 40, 3))
    x, w, dy = (cupy.asarray(rng.standard_normal(s).astype("f4")) for s in ((n, c), (o, c), (n, o)))
    found = cuda.linear(x, w, None), cuda.linear_dx(dy, w), cuda.linear_dw(x, dy)
    x, w, dy = (cuda.operand(a) for a in (x, w, dy))
    again = cuda.linear(x, w, None), cuda.linear_dx(dy, w), cuda.linear_dw(x, dy)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.get(), other.get())


@pytest.mark.parametrize("precision", ["float32", "tf32", "float64"])
def test_elsewhere_an_operand_is_the_array(precision):
    cuda.set_precision(precision)
    for dtype in ("float32", "float64"):
        x = cupy.ones((2, 3), dtype)
        assert cuda.operand(x) is x
    cuda.set_precision("bf16")
    x = cupy.ones((2, 3), "float64")
    assert cuda.operand(x) is x


@pytest.mark.parametrize("frozen", ["", "conv0,conv1"])
def test_a_step_rounds_each_operand_once(frozen):
    hostgpu = pytest.importorskip("hostgpu.counts", reason="there is a real GPU, or no stand-in")
    cuda.set_precision("bf16")
    layers = [(f"conv{i}", Conv(8, 3, padding=1)) for i in range(4)]
    layers += [("relu", ReLU()), ("flat", Flatten()), ("fc", Linear(3))]
    model = Model("deep", (8, 5, 5), tuple(layers))
    model = freeze(model, frozen) if frozen else model
    program = compile(model, preset("data", model, (1,)), 4).at((0,))
    state = initial_state(program.weights, (0,), 0, np.float32).on(cuda)
    executor = Executor(Mesh(MPI.COMM_SELF), cuda, 0)
    x = cuda.upload(np.ones((4, 8, 5, 5), np.float32))
    for _ in range(2):
        hostgpu.counts.clear()
        executor.train(program, state, x, np.arange(4) % 3, 0)
    # x, w and dy of every layer, dy of none that is frozen in front of all that learn
    expected = 5 * 3 - (2 if frozen else 0)
    assert hostgpu.counts.launches["bf16_rows"] == expected
    cuda.synchronize()
