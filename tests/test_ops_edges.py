"""The ends of every operation's range: empty axes, ties, infinities, bounded memory, bad names."""

import itertools
from inspect import signature

import numpy as np
import pytest
from backends import host, pool

from mpicnn.errors import DeviceError, UserError
from mpicnn.ops import _numpy_conv, load
from mpicnn.ops import numpy as reference
from mpicnn.ops.interface import MEMBERS, Backend
from mpicnn.ops.window import Window, overlap

ONE, ZERO, TWO = (1, 1), (0, 0), (2, 2)


def test_every_backend_has_every_operation(ops):
    assert [name for name in MEMBERS if not hasattr(ops, name)] == []
    assert load(ops.NAME) is ops


@pytest.mark.parametrize("name", [n for n in MEMBERS if n not in ("NAME", "xp")])
def test_every_backend_takes_the_same_arguments(ops, name):
    _, *expected = signature(getattr(Backend, name)).parameters.values()
    found = signature(getattr(ops, name)).parameters.values()
    assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in expected]


def test_unknown_backend():
    with pytest.raises(UserError, match="choose one of auto, numpy"):
        load("fortran")


def test_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr("mpicnn.ops.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="backend cuda cannot be used here"):
        load("cuda")


@pytest.mark.parametrize("missing, expected", (("native", "numpy"), ("cuda", "native")))
def test_auto_prefers_native(monkeypatch, missing, expected):
    found = lambda name: None if name == missing else "there"  # noqa: E731
    monkeypatch.setattr("mpicnn.ops.find_spec", lambda name: found(name.rpartition(".")[2]))
    monkeypatch.setattr("mpicnn.ops.import_module", lambda name: name)
    assert load("auto") == f"mpicnn.ops.{expected}"


def test_overlap_by_definition():
    for offset in range(5):
        for stride in (1, 2, 3):
            for padding in range(5):
                for size in (1, 2, 5):
                    to, at = overlap(offset, stride, padding, size, 4)
                    read = {t: t * stride + offset - padding for t in range(4)}
                    expected = [(t, i) for t, i in read.items() if 0 <= i < size]
                    got = zip(range(4)[to], range(size)[at], strict=True)
                    assert list(got) == expected


def test_conv2d_by_definition(ops):
    """Compare with the formula itself: cross-correlation, not convolution; zeros around."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((6, 2, 3, 2))
    (sh, sw), (ph, pw), (dh, dw) = (2, 1), (1, 2), (1, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    expected = np.zeros((2, 6, 3, 7))
    for n, o, i, j in np.ndindex(expected.shape):
        group = slice(o // 3 * 2, o // 3 * 2 + 2)
        window = padded[n, group, i * sh : i * sh + 3 * dh : dh, j * sw : j * sw + 2 * dw : dw]
        expected[n, o, i, j] = (window * w[o]).sum()
    y = ops.conv2d(
        ops.xp.asarray(x), ops.xp.asarray(w), None, Window.of((sh, sw), (ph, pw), (dh, dw), 2)
    )
    # sums of 12 terms in another order
    np.testing.assert_allclose(host(y), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("limit", (1, 700, 5000))
def test_blocks_do_not_change_the_convolution(monkeypatch, limit):
    rng = np.random.default_rng(4)
    x, w, dy = (rng.standard_normal(s) for s in ((5, 4, 9, 7), (6, 2, 3, 3), (5, 6, 5, 7)))
    window = Window.of((2, 1), (1, 1), ONE, 2)

    def results():
        return (
            reference.conv2d(x, w, None, window),
            reference.conv2d_dx(dy, w, x.shape, window),
            reference.conv2d_dw(x, dy, w.shape, window),
        )

    whole = results()
    monkeypatch.setattr(_numpy_conv, "COLUMN_BYTES", limit)
    for part, expected in zip(results(), whole, strict=True):
        # the weight gradient adds 175 products of order 1 in another order
        np.testing.assert_allclose(part, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n, c, o", ((0, 3, 2), (2, 0, 3), (2, 3, 0), (0, 0, 0)))
def test_empty_contractions(ops, n, c, o):
    zeros = ops.xp.zeros
    x, w, b, dy = zeros((n, c, 5, 4)), zeros((o, c, 3, 3)), ops.xp.ones(o), zeros((n, o, 3, 2))
    window = Window.of(ONE, ZERO, ONE)
    np.testing.assert_array_equal(host(ops.conv2d(x, w, b, window)), np.ones((n, o, 3, 2)))
    np.testing.assert_array_equal(host(ops.conv2d_dx(dy, w, x.shape, window)), np.zeros(x.shape))
    np.testing.assert_array_equal(host(ops.conv2d_dw(x, dy, w.shape, window)), np.zeros(w.shape))
    np.testing.assert_array_equal(host(ops.bias_grad(dy)), np.zeros(o))
    x, w, dy = zeros((n, c)), zeros((o, c)), zeros((n, o))
    np.testing.assert_array_equal(host(ops.linear(x, w, b)), np.ones((n, o)))
    np.testing.assert_array_equal(host(ops.linear_dx(dy, w)), np.zeros((n, c)))
    np.testing.assert_array_equal(host(ops.linear_dw(x, dy)), np.zeros((o, c)))
    np.testing.assert_array_equal(host(ops.bias_grad(dy)), np.zeros(o))


@pytest.mark.parametrize("n, c", ((0, 3), (2, 0), (0, 0)))
def test_empty_images(ops, n, c):
    x, dy = ops.xp.zeros((n, c, 5, 4)), ops.xp.zeros((n, c, 2, 2))
    y, argmax = ops.maxpool(x, *pool(TWO, TWO, ZERO), False)
    assert y.shape == argmax.shape == dy.shape
    assert ops.maxpool_dx(dy, argmax, x.shape, *pool(TWO, TWO, ZERO)).shape == x.shape
    assert ops.avgpool(x, *pool(TWO, TWO, ZERO), False, True).shape == dy.shape
    assert ops.avgpool_dx(dy, x.shape, *pool(TWO, TWO, ZERO), False, True).shape == x.shape
    y, scale = ops.lrn(x, 5, 1e-4, 0.75, 1.0)
    assert ops.lrn_dx(x, x, y, scale, 5, 1e-4, 0.75).shape == x.shape
    assert ops.activate_dx("relu", x, ops.activate("relu", x)).shape == x.shape
    y, mask = ops.dropout(x, 0.5, 0, 0, 0, np.arange(n), 0)
    assert ops.mul(y, mask).shape == x.shape
    np.testing.assert_array_equal(host(ops.channel_sums(x)), np.zeros(c))
    np.testing.assert_array_equal(host(ops.channel_sums(x, x)), np.zeros(c))
    w = ops.xp.zeros((n, c))
    ops.sgd(w, w.copy(), w.copy(), 0.1, 0.9, 0.1)
    ops.nesterov(w, w.copy(), w.copy(), 0.1, 0.9, 0.1)
    ops.adam(w, w.copy(), w.copy(), (0.9, 0.99), 0.1, 1)
    ops.descend(w, w.copy(), 0.1, 0.9)


def test_no_examples_have_no_loss(ops):
    logits, labels = ops.xp.zeros((0, 7)), ops.upload_labels(np.zeros(0, np.int64), 7)
    losses, dlogits = ops.softmax_xent(logits, labels)
    assert losses.shape == (0,)
    assert dlogits.shape == (0, 7)
    np.testing.assert_array_equal(host(ops.topk_correct(logits, labels, (1, 5))), [0, 0])


@pytest.mark.parametrize("shape", ((2, 3, 4, 5), (3, 4), (0, 3, 2, 2), (6,)), ids=str)
def test_flat(ops, shape):
    a = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    x = ops.xp.asarray(a)
    for axes in itertools.permutations(range(len(shape))):
        turned = ops.flat(x.transpose(axes))
        assert turned.flags.c_contiguous
        np.testing.assert_array_equal(host(turned), a.transpose(axes).reshape(-1))
    ops.flat(x)[...] = -1  # a view, as x lies so
    assert (host(x) == -1).all()


def test_first_maximum_wins_and_padding_never(ops):
    x = ops.xp.full((1, 1, 3, 3), -np.inf)
    x[0, 0, 2, 1:] = 4
    y, argmax = ops.maxpool(x, *pool((3, 3), TWO, ONE), False)
    np.testing.assert_array_equal(host(y)[0, 0], [[-np.inf, -np.inf], [4, 4]])
    # upper windows: the first value inside the image; lower ones: the first 4 each sees
    np.testing.assert_array_equal(host(argmax)[0, 0], [[4, 3], [5, 3]])


def test_large_windows_count_in_16_bits(ops):
    x = ops.xp.zeros((1, 1, 17, 17))
    x[0, 0, 16, 15] = 1
    _, argmax = ops.maxpool(x, *pool((17, 17), ONE, ZERO), False)
    assert argmax.dtype == np.uint16
    assert int(argmax[0, 0, 0, 0]) == 16 * 17 + 15
    dx = ops.maxpool_dx(ops.xp.full((1, 1, 1, 1), 3.0), argmax, x.shape, *pool((17, 17), ONE, ZERO))
    np.testing.assert_array_equal(host(dx), 3 * host(x))


def test_nan_is_not_hidden(ops):
    x = ops.xp.zeros((1, 1, 4, 4))
    x[0, 0, 1, 2] = np.nan
    pooled = [[False, True], [False, False]]
    y, argmax = ops.maxpool(x, *pool(TWO, TWO, ZERO), False)
    np.testing.assert_array_equal(np.isnan(host(y))[0, 0], pooled)
    assert int(argmax.max()) < 4
    np.testing.assert_array_equal(np.isnan(host(ops.activate("relu", x))), np.isnan(host(x)))


def test_softmax_of_large_logits(ops):
    logits = ops.xp.asarray([[1e4, 0.0], [-1e4, 0.0]])
    losses, dlogits = ops.softmax_xent(logits, ops.upload_labels(np.array([1, 1]), 2))
    np.testing.assert_array_equal(host(losses), [1e4, 0])
    np.testing.assert_array_equal(host(dlogits), [[1, -1], [0, 0]])


@pytest.mark.parametrize("label", (-1, 3))
def test_label_outside_the_classes(ops, label):
    with pytest.raises(ValueError, match="labels must lie in 0 … 2"):
        ops.upload_labels(np.array([0, label]), 3)


def test_ties_and_nan_count_against_the_network(ops):
    nan = np.nan
    logits = ops.xp.asarray(
        [[3.0, 1, 2], [2, 2, 1], [2, 2, 2], [nan, 1, 0], [nan, nan, nan], [1, 2, 3]]
    )
    labels = ops.upload_labels(np.array([0, 1, 0, 1, 2, 0]), 3)
    correct = ops.topk_correct(logits, labels, (1, 2, 3, 5))
    assert correct.dtype == np.int64
    np.testing.assert_array_equal(host(correct), [1, 3, 6, 6])
