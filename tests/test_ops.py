"""Every operation of every backend against PyTorch, and what PyTorch cannot answer."""

import math
from itertools import product

import numpy as np
import pytest
from backends import host, pool

from mpicnn.ops.activations import ACTIVATIONS
from mpicnn.ops.window import Window

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install mpicnn[torch]")
F = torch.nn.functional

DTYPES = ("float64", "float32")
ONE = (1, 1)

# x, w, stride, padding, dilation, groups
CONVOLUTIONS = [
    ((2, 3, 7, 5), (4, 3, 3, 2), ONE, (0, 0), ONE, 1),
    ((3, 2, 8, 11), (5, 2, 3, 3), (2, 3), (1, 2), ONE, 1),
    ((2, 3, 9, 10), (2, 3, 3, 2), (2, 1), (2, 1), (2, 3), 1),
    ((2, 6, 7, 7), (4, 3, 3, 3), ONE, ONE, ONE, 2),
    ((2, 3, 6, 5), (9, 1, 2, 3), (1, 2), (1, 1), (2, 1), 3),
    ((5, 7, 4, 3), (3, 7, 1, 1), ONE, (0, 0), ONE, 1),
    ((5, 7, 4, 3), (3, 7, 1, 1), (2, 2), ONE, ONE, 1),
    ((2, 3, 4, 5), (3, 3, 4, 5), ONE, (0, 0), ONE, 1),
    ((2, 1, 3, 3), (2, 1, 2, 2), (3, 3), (4, 3), ONE, 1),
]
# kernel, stride, padding
WINDOWS = [
    ((2, 2), (2, 2), (0, 0)),
    ((3, 3), (2, 2), (0, 0)),
    ((3, 2), (1, 3), (1, 1)),
    ((2, 3), (3, 4), (1, 0)),
    ((1, 1), (2, 3), (0, 0)),
]


@pytest.fixture(params=DTYPES)
def values(request, ops):
    """Return a function that draws normal numbers of one dtype as the backend's arrays."""
    rng = np.random.default_rng(7)
    return lambda *shape: ops.xp.asarray(rng.standard_normal(shape).astype(request.param))


def tensor(a):
    """Return a float64 copy to differentiate by."""
    return torch.tensor(np.asarray(host(a), np.float64), requires_grad=True)


def agree(actual, expected, dtype):
    actual, expected = host(actual), expected.detach().numpy()
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    # sums of up to a few hundred terms in another order: as many roundings of the largest value
    tolerance = 500 * np.finfo(dtype).eps * max(1, abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("x_shape, w_shape, stride, padding, dilation, groups", CONVOLUTIONS)
def test_conv2d(ops, values, x_shape, w_shape, stride, padding, dilation, groups):
    x, w, b = values(*x_shape), values(*w_shape), values(w_shape[0])
    window = stride, padding, dilation, groups
    tx, tw, tb = tensor(x), tensor(w), tensor(b)
    ty = F.conv2d(tx, tw, tb, *window)
    dy = values(*ty.shape)
    ty.backward(tensor(dy))
    agree(ops.conv2d(x, w, b, Window.of(*window)), ty, x.dtype)
    agree(ops.conv2d(x, w, b, Window.of(*window), True), F.relu(ty), x.dtype)
    agree(ops.conv2d(x, w, None, Window.of(*window)), ty - tb[:, None, None], x.dtype)
    agree(ops.conv2d_dx(dy, w, x.shape, Window.of(*window)), tx.grad, x.dtype)
    agree(ops.conv2d_dw(x, dy, w.shape, Window.of(*window)), tw.grad, x.dtype)
    agree(ops.bias_grad(dy), tb.grad, x.dtype)


def test_conv2d_of_views(ops, values):
    x, w = values(3, 5, 9, 4)[:, 1:4, ::2], values(6, 3, 2, 2)[::3]
    tx, tw = tensor(x), tensor(w)
    ty = F.conv2d(tx, tw)
    dy = values(3, 4, 2, 3).transpose(0, 2, 1, 3)
    ty.backward(tensor(dy))
    window = ONE, (0, 0), ONE
    agree(ops.conv2d(x, w, None, Window.of(*window)), ty, x.dtype)
    agree(ops.conv2d_dx(dy, w, x.shape, Window.of(*window)), tx.grad, x.dtype)
    agree(ops.conv2d_dw(x, dy, w.shape, Window.of(*window)), tw.grad, x.dtype)


def test_linear(ops, values):
    x, w, b, dy = values(5, 7), values(3, 7), values(3), values(5, 3)
    tx, tw, tb = tensor(x), tensor(w), tensor(b)
    ty = F.linear(tx, tw, tb)
    ty.backward(tensor(dy))
    agree(ops.linear(x, w, b), ty, x.dtype)
    agree(ops.linear(x, w, b, True), F.relu(ty), x.dtype)
    agree(ops.linear(x, w, None), ty - tb, x.dtype)
    agree(ops.linear_dx(dy, w), tx.grad, x.dtype)
    agree(ops.linear_dw(x, dy), tw.grad, x.dtype)
    dw = w.copy()
    assert ops.linear_dw(x, dy, dw) is dw
    agree(dw, tw + tw.grad, x.dtype)
    agree(ops.bias_grad(dy), tb.grad, x.dtype)


SIDES = [((0, 1), (0, 1)), ((2, 0), (1, 3)), ((1, 1), (0, 2))]


def padded(tx, sides, value=0.0):
    (top, bottom), (left, right) = sides
    return F.pad(tx, (left, right, top, bottom), value=value)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("stride, dilation, groups", [(ONE, ONE, 1), ((2, 3), (1, 2), 2)])
def test_convolution_with_unlike_padding_on_two_sides(ops, values, sides, stride, dilation, groups):
    window = Window(stride, sides, dilation, groups)
    x, w, b = values(3, 4, 7, 9), values(6, 4 // groups, 3, 2), values(6)
    tx, tw = tensor(x), tensor(w)
    ty = F.conv2d(padded(tx, sides), tw, tensor(b), stride, 0, dilation, groups)
    dy = values(*ty.shape)
    ty.backward(tensor(dy))
    agree(ops.conv2d(x, w, b, window), ty, x.dtype)
    agree(ops.conv2d_dx(dy, w, x.shape, window), tx.grad, x.dtype)
    agree(ops.conv2d_dw(x, dy, w.shape, window), tw.grad, x.dtype)
    assert ops.conv2d_methods(x.shape, w.shape, window, x.dtype)[0] != "none"


@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_pooling_with_unlike_padding_on_two_sides(ops, values, sides, ceil_mode):
    kernel, window = (4, 4), Window((2, 3), sides, ONE)
    x = values(2, 3, 7, 8)
    y, argmax = ops.maxpool(x, kernel, window, ceil_mode)
    tx = tensor(x)
    ty = F.max_pool2d(padded(tx, sides, -np.inf), kernel, (2, 3), ceil_mode=ceil_mode)
    # with ceil_mode PyTorch counts the zeros behind as image, where a last window may begin
    ty = ty[:, :, : y.shape[2], : y.shape[3]]
    dy = values(*ty.shape)
    ty.backward(tensor(dy))
    agree(y, ty, x.dtype)
    agree(ops.maxpool_dx(dy, argmax, x.shape, kernel, window), tx.grad, x.dtype)
    for count_include_pad in (True, False):
        tx = tensor(x)
        total = F.avg_pool2d(padded(tx, sides), kernel, (2, 3), divisor_override=1)
        inside = padded(torch.ones_like(tx), sides)
        counted = torch.ones_like(inside) if count_include_pad else inside
        mean = total / F.avg_pool2d(counted, kernel, (2, 3), divisor_override=1)
        dy = values(*mean.shape)
        mean.backward(tensor(dy))
        agree(ops.avgpool(x, kernel, window, False, count_include_pad), mean, x.dtype)
        dx = ops.avgpool_dx(dy, x.shape, kernel, window, False, count_include_pad)
        agree(dx, tx.grad, x.dtype)


@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize("kernel, stride, padding", WINDOWS)
def test_maxpool(ops, values, kernel, stride, padding, ceil_mode):
    for size in product((5, 6, 7, 8), (4, 7)):
        # rounded, so that many windows have several largest values
        x = ops.xp.asarray(np.round(host(values(2, 3, *size))))
        tx = tensor(x)
        ty = F.max_pool2d(tx, kernel, stride, padding, ceil_mode=ceil_mode)
        dy = values(*ty.shape)
        ty.backward(tensor(dy))
        y, argmax = ops.maxpool(x, *pool(kernel, stride, padding), ceil_mode)
        agree(y, ty, x.dtype)
        assert argmax.dtype == np.uint8
        dx = ops.maxpool_dx(dy, argmax, x.shape, *pool(kernel, stride, padding))
        agree(dx, tx.grad, x.dtype)


@pytest.mark.parametrize("ceil_mode", (False, True))
@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [
        ((2, 2), (2, 2), (0, 0), (1, 2)),
        ((3, 3), (2, 1), (0, 1), (2, 3)),
        ((2, 3), (3, 2), ONE, (3, 1)),
    ],
)
def test_dilated_maxpool(ops, values, kernel, stride, padding, dilation, ceil_mode):
    window = Window.of(stride, padding, dilation)
    for size in product((7, 8, 9), (9, 11)):
        x = ops.xp.asarray(np.round(host(values(2, 5, *size))))
        tx = tensor(x)
        ty = F.max_pool2d(tx, kernel, stride, padding, dilation, ceil_mode=ceil_mode)
        dy = values(*ty.shape)
        ty.backward(tensor(dy))
        y, argmax = ops.maxpool(x, kernel, window, ceil_mode)
        agree(y, ty, x.dtype)
        agree(ops.maxpool_dx(dy, argmax, x.shape, kernel, window), tx.grad, x.dtype)


@pytest.mark.parametrize("ceil_mode, count_include_pad", list(product((False, True), repeat=2)))
@pytest.mark.parametrize("kernel, stride, padding", WINDOWS)
def test_avgpool(ops, values, kernel, stride, padding, ceil_mode, count_include_pad):
    for size in product((5, 6, 7, 8), (4, 7)):
        x = values(2, 3, *size)
        window = kernel, stride, padding, ceil_mode, count_include_pad
        tx = tensor(x)
        ty = F.avg_pool2d(tx, *window)
        dy = values(*ty.shape)
        ty.backward(tensor(dy))
        agree(ops.avgpool(x, *pool(*window)), ty, x.dtype)
        agree(ops.avgpool_dx(dy, x.shape, *pool(*window)), tx.grad, x.dtype)


@pytest.mark.parametrize("size", (1, 2, 3, 4, 5, 8, 13))
@pytest.mark.parametrize("beta", (0.75, 0.5))
def test_lrn(ops, values, size, beta):
    x, dy = values(2, 6, 3, 4), values(2, 6, 3, 4)
    tx = tensor(x)
    ty = F.local_response_norm(tx, size, 0.7, beta, 1.3)
    ty.backward(tensor(dy))
    y, scale = ops.lrn(x, size, 0.7, beta, 1.3)
    agree(y, ty, x.dtype)
    agree(ops.lrn_dx(dy, x, y, scale, size, 0.7, beta), tx.grad, x.dtype)


THEIRS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leakyrelu": lambda x: F.leaky_relu(x, 0.2),
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(ops, values, name):
    x, dy = values(4, 3, 67, 2) * 4, values(4, 3, 67, 2)
    # bends, the smallest and the largest numbers, and what is none
    ends = [0, -0.0, 3, -3, 6, 1e-30, -1e-30, 30, -30, 100, -100, 1e4, -1e4, np.inf, np.nan]
    x[0, 0, : len(ends), 0] = ops.xp.asarray(np.array(ends, x.dtype))
    tx = tensor(x)
    ty = THEIRS[name](tx)
    ty.backward(tensor(dy))
    with np.errstate(invalid="ignore"):
        y = ops.activate(name, x, 0.2)
        dx = ops.activate_dx(name, dy, y if ACTIVATIONS[name].reads == "y" else x, 0.2)
    finite = np.isfinite(host(x))
    for ours, theirs, known in ((y, ty, ...), (dx, tx.grad, finite)):
        ours, theirs = host(ours)[known], theirs.detach().numpy()[known]
        assert ours.dtype == x.dtype
        # a few roundings of a value, or of the numbers of order 1 that it is the difference of
        eps = 8 * np.finfo(x.dtype).eps
        np.testing.assert_allclose(ours, theirs, rtol=eps, atol=eps)


@pytest.mark.parametrize("name", ("sigmoid", "tanh", "silu", "gelu"))
def test_activations_keep_their_digits_far_from_1(ops, values, name):
    x = ops.xp.asarray(np.linspace(-12, -1e-3, 500).reshape(5, 100).astype(values(1).dtype))
    ours, theirs = host(ops.activate(name, x)), THEIRS[name](tensor(x)).detach().numpy()
    if name == "gelu":
        # PyTorch's loses them in 1 + erf
        theirs = np.array([v * math.erfc(-v / math.sqrt(2)) / 2 for v in host(x).flat])
        theirs = theirs.reshape(5, 100)
    # the square of a number below 12, rounded, is the exponent
    np.testing.assert_allclose(ours, theirs, rtol=150 * np.finfo(x.dtype).eps)


@pytest.mark.parametrize("shape", ((3, 4), (3, 4, 2, 5)))
def test_per_channel(ops, values, shape):
    a, b = values(*shape), values(*shape)
    axes = (0, *range(2, len(shape)))
    agree(ops.channel_sums(a), tensor(a).sum(axes), a.dtype)
    agree(ops.channel_sums(a, b), (tensor(a) * tensor(b)).sum(axes), a.dtype)
    agree(ops.mul(a, b), tensor(a) * tensor(b), a.dtype)


def test_softmax_xent(ops, values):
    logits = values(6, 5)
    labels = np.array([0, 4, 2, 2, 1, 3])
    tlogits = tensor(logits)
    tlosses = F.cross_entropy(tlogits, torch.tensor(labels), reduction="none")
    tlosses.sum().backward()
    losses, dlogits = ops.softmax_xent(logits, ops.upload_labels(labels, 5))
    agree(losses, tlosses, logits.dtype)
    agree(dlogits, tlogits.grad, logits.dtype)


def test_sgd(ops, values):
    w, v = values(3, 5), values(3, 5) * 0
    tw = tensor(w)
    # PyTorch takes the rate out of v: the same path as long as the rate is constant
    optimizer = torch.optim.SGD([tw], lr=0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(3):
        g = values(3, 5)
        tw.grad = tensor(g).detach()
        optimizer.step()
        ops.sgd(w, v, g, 0.1, 0.9, 0.05)
    agree(w, tw, w.dtype)
    assert v.dtype == w.dtype


def test_descend(ops, values):
    w, g = values(3, 5), values(3, 5)
    expected = tensor(w) - 0.1 * (tensor(g) + 0.3 * tensor(w))
    ops.descend(w, g, 0.1, 0.3)
    agree(w, expected, w.dtype)


def test_nesterov(ops, values):
    w, v = values(3, 5), values(3, 5) * 0
    tw = tensor(w)
    optimizer = torch.optim.SGD([tw], lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True)
    for _ in range(3):
        g = values(3, 5)
        tw.grad = tensor(g).detach()
        optimizer.step()
        ops.nesterov(w, v, g, 0.1, 0.9, 0.05)
    agree(w, tw, w.dtype)
    assert v.dtype == w.dtype


def test_adam(ops, values):
    w, m, v = values(3, 5), values(3, 5) * 0, values(3, 5) * 0
    tw = tensor(w)
    optimizer = torch.optim.Adam([tw], lr=0.1, betas=(0.7, 0.95), eps=0.01)
    for count in range(1, 4):
        g = values(3, 5)
        tw.grad = tensor(g).detach()
        optimizer.step()
        ops.adam(m, v, g, (0.7, 0.95), 0.01, count)
        w -= 0.1 * g
    agree(w, tw, w.dtype)
    assert m.dtype == v.dtype == g.dtype == w.dtype
