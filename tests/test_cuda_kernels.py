"""The GPU's kernels against NumPy: any strides and sizes, grids that are too small, same bits."""

import itertools

import numpy as np
import pytest
from backends import pool

from mpicnn.ops import _cuda_arrays, available, load
from mpicnn.ops import numpy as reference

if "cuda" not in available():
    pytest.skip("CuPy is not installed", allow_module_level=True)

cuda = load("cuda")

SHAPES = [
    (2, 3, 5, 7),
    (3, 8, 6, 5),
    (2, 66, 4, 4),
    (5, 1, 4, 6),
    (1, 37, 17, 4),
    (0, 3, 5, 7),
    (2, 0, 5, 7),
]


def upload(a):
    return cuda.xp.asarray(np.ascontiguousarray(a))


def channels_last(a):
    return upload(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def unaligned(a):
    """Return a copy that begins at no multiple of 16 bytes."""
    return upload(np.concatenate(([0], a.ravel()), dtype=a.dtype))[1:].reshape(a.shape)


# How an array of a device may lie in memory.
LAYOUTS = {
    "NHWC": channels_last,
    "NCHW": upload,
    "some channels": lambda a: channels_last(a.repeat(3, axis=1))[:, 1::3],
    "some examples": lambda a: channels_last(a.repeat(2, axis=0))[::2],
    "unaligned": lambda a: unaligned(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
}


def max_pooling(ops, x, z, *window):
    kernel, stride, padding, ceil_mode = window
    y, argmax = ops.maxpool(x, *pool(*window))
    return y, argmax, ops.maxpool_dx(y + 1, argmax, x.shape, *pool(kernel, stride, padding))


def mean_pooling(ops, x, z, *window):
    y = ops.avgpool(x, *pool(*window))
    return y, ops.avgpool_dx(y, x.shape, *pool(*window))


def normalized(ops, x, z, size, beta):
    y, scale = ops.lrn(x, size, 0.7, beta, 1.3)
    return y, scale, ops.lrn_dx(z, x, y, scale, size, 0.7, beta)


def norm_parts(ops, x, z, rows):
    mean, scale, shift, along = (z[rows, :, i, 2] for i in range(4))
    factors = ops.xp.stack((scale, along, shift))
    return (
        *ops.moments(x, planes=rows != 0),
        ops.normalise(x, mean, scale, shift),
        *ops.normalise_sums(z, x, mean),
        ops.normalise_dx(z, x, mean, factors),
    )


def dropped(ops, x, z, first):
    positions = np.arange(len(x)) * 1000003
    return ops.dropout(x, 0.3, 5, 2, 2**33 + 1, positions, first)


HALVES = pool((2, 2), (2, 2), (0, 0))

# Each gives a tuple of arrays for x and z of one shape.
CASES = {
    "relu": lambda ops, x, z: (ops.activate("relu", x), ops.activate_dx("relu", z, x)),
    "mul": lambda ops, x, z: (ops.mul(x, z),),
    "norm of channels": lambda ops, x, z: norm_parts(ops, x, z, 0) if len(x) else (),
    "norm of planes": lambda ops, x, z: norm_parts(ops, x, z, slice(None)),
    "sums": lambda ops, x, z: (ops.channel_sums(x), ops.channel_sums(x, z), ops.bias_grad(z)),
    "dropout 0": lambda ops, x, z: dropped(ops, x, z, 0),
    "dropout 7": lambda ops, x, z: dropped(ops, x, z, 7),
    "lrn 5": lambda ops, x, z: normalized(ops, x, z, 5, 0.75),
    "lrn 4": lambda ops, x, z: normalized(ops, x, z, 4, 0.6),
    "lrn 300": lambda ops, x, z: normalized(ops, x, z, 300, 0.75),
    "max 3x3/2": lambda ops, x, z: max_pooling(ops, x, z, (3, 3), (2, 2), (1, 0), True),
    "max 2x2/1": lambda ops, x, z: max_pooling(ops, x, z, (2, 2), (1, 1), (0, 1), False),
    "max 1x4/3": lambda ops, x, z: max_pooling(ops, x, z, (1, 4), (3, 1), (0, 2), False),
    "max 17x16": lambda ops, x, z: max_pooling(ops, x, z, (17, 16), (1, 2), (8, 8), True),
    "mean 3x3/2": lambda ops, x, z: mean_pooling(ops, x, z, (3, 3), (2, 2), (1, 1), True, True),
    "mean 2x3/1": lambda ops, x, z: mean_pooling(ops, x, z, (2, 3), (1, 2), (1, 1), True, False),
}
# What moves values about, or adds up few in the reference's order, gives the reference's bits.
EXACT = ("relu", "mul", "dropout", "max", "mean")


@pytest.fixture(params=(4096, 2), ids=("grid as it is", "2 blocks"))
def limit(request, monkeypatch):
    monkeypatch.setattr(_cuda_arrays, "BLOCKS", request.param)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
def test_kernels(case, layout, dtype, limit):
    rng = np.random.default_rng(8)
    place = LAYOUTS[layout]
    for shape in SHAPES:
        # coarse numbers: many windows have several largest values, and some are 0
        x, z = (np.round(rng.standard_normal(shape) * 4).astype(dtype) / 4 for _ in range(2))
        expected = CASES[case](reference, x, z)
        found = CASES[case](cuda, place(x), place(z))
        # the same bits, however the arrays lie: here only one of them as in `layout`
        others = (channels_last(x), place(z)), (place(x), channels_last(z))
        again = [CASES[case](cuda, *other) for other in others]
        for e, f, *same in zip(expected, found, *again, strict=True):
            assert f.dtype == e.dtype
            assert f.ndim != 4 or f.transpose(0, 2, 3, 1).flags.c_contiguous
            for g in same:
                np.testing.assert_array_equal(g.get(), f.get())
            if case.startswith(EXACT):
                np.testing.assert_array_equal(f.get(), e)
                continue
            # at most 300 terms of order 1, most of them in another order
            tolerance = 300 * np.finfo(dtype).eps * max(1, abs(e).max(initial=0))
            np.testing.assert_allclose(f.get(), e, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("shape", ((5, 7), (3, 64), (1, 1), (9, 130), (0, 3), (3, 0)))
def test_kernels_of_rows(shape, dtype, limit):
    rng = np.random.default_rng(8)
    x, z = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    transposed, spread = lambda a: upload(a.T).T, lambda a: upload(a.repeat(2, axis=1))[:, ::2]
    for place in (upload, transposed, spread, unaligned):
        dx, dz = place(x), place(z)
        np.testing.assert_array_equal(
            cuda.activate_dx("relu", dz, dx).get(), reference.activate_dx("relu", z, x)
        )
        for e, f in zip(dropped(reference, x, z, 3), dropped(cuda, dx, dz, 3), strict=True):
            np.testing.assert_array_equal(f.get(), e)
        # sums of up to 9 terms of order 1, and one rounding more or less
        tolerance = {"rtol": 0, "atol": 40 * np.finfo(dtype).eps}
        sums = cuda.channel_sums(dx, dz).get()
        np.testing.assert_allclose(sums, reference.channel_sums(x, z), **tolerance)
        for e, f in zip(reference.moments(x), cuda.moments(dx), strict=True):
            np.testing.assert_allclose(f.get(), e, **tolerance)
        if len(x):
            found = cuda.normalise(dx, dx[0], dz[0], dx[-1]).get()
            expected = reference.normalise(x, x[0], z[0], x[-1])
            np.testing.assert_allclose(found, expected, **tolerance)


@pytest.mark.parametrize("classes", (1, 10, 33, 1000, 4099))
def test_rows_of_logits(classes, limit):
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((7, classes)).astype(np.float32) * 5
    labels = rng.integers(0, classes, 7)
    # at the edge of the best five, where one wrong comparison shows
    order = np.argsort(-logits)
    labels[5], labels[6] = order[5, min(4, classes - 1)], order[6, min(5, classes - 1)]
    logits[2] = -np.inf
    logits[3, 0] = np.inf
    logits[4, -1] = np.nan
    there = cuda.upload_labels(labels, classes)
    for device in (upload(logits), upload(logits.T).T):
        with np.errstate(invalid="ignore"):
            expected = reference.softmax_xent(logits, labels)
        for e, f in zip(expected, cuda.softmax_xent(device, there), strict=True):
            # exponentials and logarithms of two libraries, sums in another order
            np.testing.assert_allclose(f.get(), e, rtol=2e-5, atol=2e-6)
        correct = cuda.topk_correct(device, there, (1, 5)).get()
        np.testing.assert_array_equal(correct, reference.topk_correct(logits, labels, (1, 5)))


UPDATES = {
    "sgd": (0.1, 0.9, 0.05),
    "nesterov": (0.1, 0.9, 0.05),
    "descend": (0.1, 0.05),
    "adam": ((0.9, 0.99), 0.5, 3),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_updates_of_any_strides(name, dtype, limit):
    rng = np.random.default_rng(5)
    orders = {
        "C": upload,
        "F": lambda a: upload(a.T).T,
        "spread": lambda a: upload(a.repeat(2, axis=0))[::2],
        "unaligned": unaligned,
    }
    count = 2 if name == "descend" else 3
    for shape in ((7,), (5, 6), (4, 3, 2, 5), (8, 4, 3, 3), (2, 3, 0, 1)):
        arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(count)]
        arrays[1] = abs(arrays[1])  # adam takes its root
        expected = [a.copy() for a in arrays]
        getattr(reference, name)(*expected, *UPDATES[name])
        possible = {**orders, "NHWC": channels_last} if len(shape) == 4 else orders
        every = list(itertools.product(possible.values(), repeat=count))
        for at in rng.permutation(len(every))[:16]:  # over all rules and types every pair occurs
            places = every[at]
            found = [place(a) for place, a in zip(places, arrays, strict=True)]
            getattr(cuda, name)(*found, *UPDATES[name])
            for e, f in zip(expected, found, strict=True):
                # products may be fused with sums: a rounding less of numbers below 5
                np.testing.assert_allclose(f.get(), e, rtol=0, atol=5 * np.finfo(dtype).eps)


def test_sums_of_many_rows():
    """Positive numbers: an error relative to the sum, as if almost all were done in double."""
    a = 1 + np.random.default_rng(6).random((300, 5, 40, 3), np.float32)
    b = np.random.default_rng(7).random(a.shape, np.float32)
    for args in ((a,), (a, b)):
        exact = np.prod(np.stack(args).astype(np.float64), axis=0).sum((0, 2, 3))
        found = cuda.channel_sums(*map(upload, args)).get()
        # a product is rounded once and 15 sums once each, before float64 takes over
        np.testing.assert_allclose(found, exact, rtol=16 * np.finfo(np.float32).eps / 2)


def test_more_rows_than_a_grid_is_high():
    x = np.ones((65535 + 3, 2), np.float32)
    expected = dropped(reference, x, x, 1)
    for e, f in zip(expected, dropped(cuda, upload(x), None, 1), strict=True):
        np.testing.assert_array_equal(f.get(), e)


@pytest.mark.parametrize(
    "call, message",
    (
        (lambda a, b: cuda.activate_dx("relu", a, b), "y must be"),
        (lambda a, b: cuda.mul(a, b), "mask must be"),
        (lambda a, b: cuda.mul(a, a.astype(np.float64)), "mask must be float32"),
        (lambda a, b: cuda.activate("relu", a.astype(np.int32)), "float32 or float64, not int32"),
        (lambda a, b: cuda.channel_sums(a, b), "b must be"),
        (lambda a, b: cuda.normalise(a, *[a[0, :, 0, 0]] * 2, b[0, :, 0, 0]), "shift must be"),
        (lambda a, b: cuda.normalise(a, *[a[:, :, 0, 0]] * 2, a[0, :, 0, 0]), "shift must be"),
        (lambda a, b: cuda.normalise(a, b[0, :, 0, 0], *[a[0, :, 0, 0]] * 2), "mean must be"),
        (lambda a, b: cuda.normalise_sums(b, a, a[0, :, 0, 0]), "dy must be"),
        (lambda a, b: cuda.normalise_dx(a, a, a[0, :, 0, 0], a[:, :, 0, 0]), "factors must be"),
        (lambda a, b: cuda.sgd(a, b, a, 0.1, 0.9, 0.1), "v must be"),
        (lambda a, b: cuda.lrn(a, 0, 1.0, 0.75, 1.0), "size must be at least 1"),
        (lambda a, b: cuda.lrn_dx(b, a, a, a, 5, 1.0, 0.75), "dy must be"),
        (
            lambda a, b: cuda.avgpool_dx(a, a.shape, *pool((2, 2), (2, 2), (0, 0)), False, True),
            "dy must",
        ),
        (lambda a, b: cuda.maxpool(a, *pool((2, 2), (1, 1), (2, 0)), False), "padding"),
        (lambda a, b: cuda.maxpool(a, *pool((9, 9), (1, 1), (0, 0)), False), "does not fit"),
        (lambda a, b: cuda.maxpool_dx(a, a, a.shape, *pool((1, 1), (1, 1), (0, 0))), "argmax"),
        (lambda a, b: cuda.dropout(a, 1.0, 0, 0, 0, np.arange(2), 0), "rate"),
        (lambda a, b: cuda.dropout(a, 0.5, 0, 0, 0, np.arange(3), 0), "positions"),
        (lambda a, b: cuda.dropout(a, 0.5, 0, 0, 0, np.arange(2), -1), "first"),
        (lambda a, b: cuda.upload_labels(np.array([0, 3]), 3), "labels must lie"),
        (lambda a, b: cuda.softmax_xent(a[:, :, 0, 0], cuda.xp.zeros(1, np.int64)), "labels must"),
        (lambda a, b: cuda.topk_correct(a[:, :, 0, 0], cuda.xp.zeros(2), (1,)), "labels must"),
        (lambda a, b: cuda.set_threads(0), "count"),
    ),
)
def test_what_does_not_fit_is_refused(call, message):
    """Kernels see bare memory: nothing else would notice."""
    a = cuda.xp.ones((2, 3, 4, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        call(a, a[:, :2])


def test_the_host_waits_for_nothing():
    if "standin" not in cuda.xp.__file__:
        pytest.skip("a real GPU may be done before it is asked: only the stand-in waits to be told")
    rng = np.random.default_rng(3)
    x, z = (channels_last(rng.standard_normal((2, 3, 6, 5))) for _ in range(2))
    batch, places = upload(rng.integers(0, 256, (2, 3, 4, 4), np.uint8)), np.array([0, 1])
    cuda.synchronize()
    with cuda.xp.cuda.Stream(non_blocking=True) as stream:
        cuda.activate("relu", x)
        begun = stream.record()
        for case in CASES.values():
            case(cuda, x, z)
        labels = cuda.upload_labels(places, 3)
        cuda.softmax_xent(x[:, :, 0, 0], labels)
        cuda.topk_correct(x[:, :, 0, 0], labels, (1, 5))
        cuda.sgd(x, z, z, 0.1, 0.9, 0.1)
        cuda.images(batch, places, -places, places > 0, np.ones(3), np.ones(3), (3, 3), np.float32)
        assert not begun.done
        stream.synchronize()
        assert begun.done


def test_a_window_over_too_many_channels_is_refused():
    x = cuda.xp.ones((1, 5100, 1, 1))
    with pytest.raises(ValueError, match="5099 channels: 5001 are possible"):
        cuda.lrn(x, 5099, 1.0, 0.75, 1.0)
