"""Arrays of a GPU in the orders of memory that others want: which values, and by which copies."""

import numpy as np
import pytest

from mpicnn.layers import Flatten
from mpicnn.layers.loss import SoftmaxCrossEntropy
from mpicnn.ops import _cuda_arrays, available, load

if "cuda" not in available():
    pytest.skip("CuPy is not installed", allow_module_level=True)

from mpicnn.comm.wire_gpu import AwareWire, StagedWire
from mpicnn.ops import numpy as reference
from mpicnn.step.state import State

cuda = load("cuda")

# One tile and several, whole and cut off; few channels, few pixels, more images than blocks.
SHAPES = (
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 3, 37, 41),
    (2, 33, 31, 3),
    (2, 64, 8, 12),
    (1, 97, 13, 13),
    (5, 130, 3, 3),
    (2, 1100, 1, 2),
    (3, 2, 1, 1025),
    (4100, 3, 2, 2),
    (0, 3, 4, 5),
    (2, 0, 4, 5),
)


def numbers(shape, dtype):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def channels_last(a):
    return cuda.xp.asarray(np.ascontiguousarray(a.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)


def lies_channels_last(x):
    return x.transpose(0, 2, 3, 1).flags.c_contiguous


def shared(a, b):
    return a.data.ptr == b.data.ptr


@pytest.fixture(params=(4096, 2), ids=("grid as it is", "2 blocks"))
def tiled(request, monkeypatch):
    """Let copies be made by the kernel of the project alone."""
    monkeypatch.setattr(_cuda_arrays, "BLOCKS", request.param)
    monkeypatch.delattr(_cuda_arrays.cupy, "ascontiguousarray")


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orders_of_memory(shape, dtype, tiled):
    a = numbers(shape, dtype)
    first, last = cuda.xp.asarray(a), channels_last(a)
    there, back = _cuda_arrays.cells(first), _cuda_arrays.plain(last)
    assert lies_channels_last(there)
    assert back.flags.c_contiguous
    for found in (there, back):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.get(), a)
    np.testing.assert_array_equal(_cuda_arrays.flat(last).get(), a.reshape(-1))
    assert shared(_cuda_arrays.cells(last), last)
    assert shared(_cuda_arrays.plain(first), first)
    assert shared(_cuda_arrays.flat(first), first)


@pytest.mark.parametrize("dtype", (np.float32, np.uint8))
def test_orders_of_memory_from_any_strides(dtype):
    a = numbers((4, 6, 5, 3), dtype)
    first, last = cuda.xp.asarray(a), channels_last(a)
    for index in (np.s_[:], np.s_[::2], np.s_[:, 1:4], np.s_[:, :, ::-1], np.s_[:, :, 1:, :2]):
        for x in (first[index], last[index], first.transpose(1, 0, 3, 2)[index]):
            there, back = _cuda_arrays.cells(x), _cuda_arrays.plain(x)
            assert lies_channels_last(there)
            assert back.flags.c_contiguous
            for found in (there, back):
                np.testing.assert_array_equal(found.get(), x.get())
            np.testing.assert_array_equal(_cuda_arrays.flat(x).get(), x.get().reshape(-1))


def test_what_is_flattened_or_sent_takes_the_kernel(tiled):
    a = numbers((3, 5, 4, 2), np.float32)
    x = channels_last(a)
    rows, saved = Flatten().forward(cuda, x, {}, None)
    np.testing.assert_array_equal(rows.get(), a.reshape(3, 40))
    assert saved == x.shape
    for wire in (StagedWire, AwareWire):
        np.testing.assert_array_equal(wire.flat(x).get(), a.reshape(-1))
    np.testing.assert_array_equal(cuda.fetch(x)(), a)


def test_parameters_lie_between_steps_as_convolutions_read_them(tiled):
    rng = np.random.default_rng(3)
    w, v, g = (rng.standard_normal((6, 5, 3, 3)).astype(np.float32) for _ in range(3))
    state = State({"w": w}, {"w": v}, {"mean": w[0, 0, 0]}).on(cuda)
    here, speed = state.params["w"], state.velocity["w"]
    assert _cuda_arrays.cells(here) is here
    # gradients of convolutions and those that have travelled
    for place in (channels_last, cuda.xp.asarray):
        reference.sgd(w, v, g, 0.1, 0.9, 0.05)
        cuda.sgd(here, speed, place(g), 0.1, 0.9, 0.05)
        for found, expected in ((here, w), (speed, v)):
            assert lies_channels_last(found)
            # products may be fused with sums: a rounding less of numbers below 5, twice
            tolerance = 10 * np.finfo(np.float32).eps
            np.testing.assert_allclose(cuda.fetch(found)(), expected, rtol=0, atol=tolerance)


def test_labels_are_brought_to_the_gpu_once(monkeypatch):
    uploads = []
    original = cuda.xp.asarray
    monkeypatch.setattr(
        cuda.xp, "asarray", lambda a, *args: uploads.append(a) or original(a, *args)
    )
    logits, labels = cuda.xp.ones((4, 3), np.float32), np.array([0, 2, 1, 1])
    SoftmaxCrossEntropy().forward(cuda, logits, labels)
    assert uploads == [labels]
