"""Padding that differs between the two sides of an axis, and rows of the table of activations."""

import sys
from types import MappingProxyType

import numpy as np
import pytest
from backends import host

from mpicnn.layers.activation import Activation as ActivationLayer
from mpicnn.layers.base import Context
from mpicnn.ops import numpy as reference
from mpicnn.ops.activations import ACTIVATIONS, Activation
from mpicnn.ops.window import Window

ONE = (1, 1)


def convolutions(count):
    """Yield shapes of x and w and a window, drawn at random, of which each has an output."""
    rng = np.random.default_rng(5)
    while count:
        groups = int(rng.choice([1, 1, 2, 3]))
        c, o, n, height, width = (int(i) for i in rng.integers(1, (4, 4, 4, 12, 12)))
        kernel, stride, dilation = (pair(rng, 1, most) for most in (4, 4, 3))
        window = Window(stride, (pair(rng, 0, 4), pair(rng, 0, 4)), dilation, groups)
        if min(window.conv_shape((height, width), kernel)) >= 1:
            yield (n, groups * c, height, width), (groups * o, c, *kernel), window
            count -= 1


def pair(rng, low, high):
    first, second = rng.integers(low, high, 2)
    return int(first), int(second)


def test_convolutions_agree_and_their_gradients_are_adjoint(ops):
    rng = np.random.default_rng(1)
    for x_shape, w_shape, window in convolutions(100):
        x, w = rng.standard_normal(x_shape), rng.standard_normal(w_shape)
        dy = rng.standard_normal(reference.conv2d(x, w, None, window).shape)
        there = [ops.xp.asarray(a) for a in (x, w, dy)]
        y = host(ops.conv2d(*there[:2], None, window))
        dx = host(ops.conv2d_dx(there[2], there[1], x_shape, window))
        dw = host(ops.conv2d_dw(there[0], there[2], w_shape, window))
        np.testing.assert_allclose(y, reference.conv2d(x, w, None, window), atol=1e-11)
        np.testing.assert_allclose(dx, reference.conv2d_dx(dy, w, x_shape, window), atol=1e-11)
        np.testing.assert_allclose(dw, reference.conv2d_dw(x, dy, w_shape, window), atol=1e-11)
        product = np.vdot(y, dy)
        assert np.vdot(x, dx) == pytest.approx(product, rel=1e-10, abs=1e-10)
        assert np.vdot(w, dw) == pytest.approx(product, rel=1e-10, abs=1e-10)


def test_added_padding_never_wins_where_all_is_minus_infinity(ops):
    rng = np.random.default_rng(2)
    x = np.round(rng.standard_normal((2, 3, 7, 8)))
    x[x < 0.5] = -np.inf
    for sides in (((1, 0), (0, 1)), ((2, 1), (0, 2)), ((0, 2), (2, 0))):
        for ceil_mode in (False, True):
            args = (3, 3), Window((2, 2), sides, ONE)
            y, argmax = ops.maxpool(ops.xp.asarray(x), *args, ceil_mode)
            expected, places = reference.maxpool(x, *args, ceil_mode)
            assert (expected == -np.inf).any()
            np.testing.assert_array_equal(host(y), expected, strict=True)
            np.testing.assert_array_equal(host(argmax), places, strict=True)
            dy = rng.standard_normal(expected.shape)
            dx = host(ops.maxpool_dx(ops.xp.asarray(dy), argmax, x.shape, *args))
            assert dx.sum() == pytest.approx(dy.sum(), rel=1e-10)


@pytest.mark.parametrize("backend", ("native", "cuda"))
@pytest.mark.parametrize(
    "window, blamed",
    [
        (Window(ONE, ((1, 0),), ONE), "padding"),
        (Window(ONE, ((-1, 0), (0, 0)), ONE), "padding"),
        (Window(ONE, ((0.5, 0), (0, 0)), ONE), "padding"),
        (Window((1,), ((1, 0), (0, 0)), ONE), "stride"),
        (Window(ONE, ((1, 0), (0, 0)), (0, 1)), "dilation"),
    ],
    ids=str,
)
def test_what_is_no_window_is_named(backend, window, blamed):
    ops = pytest.importorskip(
        f"mpicnn.ops.{backend}", reason="it is not there", exc_type=ImportError
    )
    x, w = ops.xp.ones((1, 1, 5, 5)), ops.xp.ones((1, 1, 2, 2))
    calls = [
        (ops.conv2d, (x, w, None, window)),
        (ops.conv2d_dx, (x, w, x.shape, window)),
        (ops.conv2d_dw, (x, x, w.shape, window)),
        (ops.conv2d_methods, (x.shape, w.shape, window, x.dtype)),
    ]
    for function, arguments in calls:
        with pytest.raises(ValueError, match=blamed):
            function(*arguments)


ROWS = {
    "x": Activation(
        lambda xp, x, slope: xp.arctan(x), lambda xp, dy, x, slope: dy / (1 + x * x), "x"
    ),
    "y": Activation(
        lambda xp, x, slope: xp.arctan(x), lambda xp, dy, y, slope: dy * xp.cos(y) ** 2
    ),
}


class Arctan(ActivationLayer):
    """Return the angle whose tangent is x."""

    name = "arctan"


@pytest.mark.parametrize("reads", ROWS)
def test_one_row_and_one_class_make_an_activation(ops, monkeypatch, reads):
    table = MappingProxyType({**ACTIVATIONS, "arctan": ROWS[reads]})
    for name, module in list(sys.modules.items()):
        if name.startswith("mpicnn.") and hasattr(module, "ACTIVATIONS"):
            monkeypatch.setattr(module, "ACTIVATIONS", table)
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal((2, 3, 5, 4)).astype(np.float32) for _ in range(2))
    layer, ctx = Arctan(), Context(True, 0, 0, 0, 2, np.arange(2), (0, 3))
    x = ops.xp.asarray(x)
    y, made = layer.forward(ops, x, {}, ctx)
    dx, grads = layer.backward(ops, ops.xp.asarray(dy), layer.tape(x, y, made), {}, ctx)
    assert grads == {}
    for got, expected in ((y, np.arctan(host(x))), (dx, dy / (1 + host(x) ** 2))):
        assert host(got).dtype == np.float32
        np.testing.assert_allclose(host(got), expected, rtol=0, atol=1e-6)
