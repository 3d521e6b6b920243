"""Every layer: its gradients by differences, its conventions against PyTorch, its refusals."""

import math

import numpy as np
import pytest
from backends import host

from mpicnn.errors import UserError
from mpicnn.layers import (
    GELU,
    LRN,
    AvgPool,
    BatchNorm,
    Context,
    Conv,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GroupNorm,
    HardSwish,
    LeakyReLU,
    Linear,
    MaxPool,
    MixedLabels,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    SoftmaxCrossEntropy,
    Tanh,
)
from mpicnn.ops import load

LAYERS = [
    (Conv(4, 3), (2, 5, 6)),
    (Conv(6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2, bias=False), (4, 6, 7)),
    (Conv(3, 1), (5, 2, 3)),
    (Conv(2, 3, 2, (1, 0, 0, 2)), (2, 5, 4)),
    (Linear(5), (7,)),
    (Linear(1, bias=False), (3,)),
    (Linear(6, groups=3), (9,)),
    (Linear(4, bias=False, groups=4), (8,)),
    (MaxPool(3, 2, 1), (3, 6, 5)),
    (MaxPool(2, ceil_mode=True), (3, 5, 4)),
    (MaxPool(2, 1, 1, dilation=(2, 3)), (2, 5, 6)),
    (MaxPool(3, 2, (1, 0, 0, 1)), (2, 5, 6)),
    (AvgPool((3, 2), 2, (1, 0), ceil_mode=True), (3, 6, 5)),
    (AvgPool(3, 2, (0, 1, 1, 0)), (2, 6, 5)),
    (AvgPool(3, 2, 1, count_include_pad=False), (3, 6, 5)),
    (GlobalAvgPool(), (3, 2, 4)),
    (LRN(3, 0.9, 0.75, 1.5), (5, 3, 2)),
    (LRN(4, 0.9, 0.6, 2.0), (5, 3, 2)),
    (BatchNorm(), (3, 2, 4)),
    (BatchNorm(0.3, 1e-3), (5,)),
    (GroupNorm(2), (4, 2, 3)),
    (GroupNorm(3, 1e-3), (6,)),
    (ReLU(), (3, 2, 3)),
    (ReLU6(), (3, 2, 3)),
    (LeakyReLU(0.2), (3, 2, 3)),
    (SiLU(), (3, 2, 3)),
    (HardSwish(), (3, 2, 3)),
    (Sigmoid(), (3, 2, 3)),
    (Tanh(), (3, 2, 3)),
    (GELU(), (3, 2, 3)),
    (Dropout(0.4), (3, 4, 2)),
    (Flatten(), (3, 2, 4)),
]


def local_run(layer, shape, n, train=True):
    """Return the circumstances of a layer whose whole tensor lies here."""
    channels = (0, layer.out_shape(shape)[0])
    return Context(train, 3, 1, 2, n, np.arange(n), channels)


def spread(ops, *shape):
    """Return numbers from -1 to 1 in random order, all well apart from each other and from 0."""
    size = math.prod(shape)
    values = 2 * (np.random.default_rng(11).permutation(size) + 0.25) / size - 1
    return ops.xp.asarray(values.reshape(shape))


def state(ops, layer, shape):
    """Return parameters and buffers of one layer, none of them at its neutral value."""
    p = {name: spread(ops, *param.shape) for name, param in layer.params(shape).items()}
    return p | {name: spread(ops, *b.shape) ** 2 + 1 for name, b in layer.buffers(shape).items()}


def directions(ops, shape):
    """Yield directions in which to move an array: along each element alone where that is quick.

    On a GPU, which a CPU stands in for, they are some random ones. All elements count in each, by
    at most 1, so that none passes where its slope is another than it should be.
    """
    size = math.prod(shape)
    if ops.NAME == "cuda":
        rng = np.random.default_rng(size)
        chosen = rng.uniform(-1, 1, (6, size)) / max(1.0, size**0.5)
    else:
        chosen = np.eye(size)
    for direction in chosen:
        yield ops.xp.asarray(direction.reshape(shape))


def copies(arrays):
    return {name: a.copy() for name, a in arrays.items()}


@pytest.mark.parametrize("train", (True, False))
@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: str(v).replace(" ", ""))
def test_gradients_by_differences(ops, layer, shape, train):
    n, step = 3, 1e-5
    x, p = spread(ops, n, *shape), state(ops, layer, shape)
    run = local_run(layer, shape, n, train)
    before = copies(p)
    y, saved = layer.forward(ops, x, before, run)
    assert y.shape == (n, *layer.out_shape(shape))
    dy = spread(ops, *y.shape) + 0.5
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, saved), before, run)
    assert set(grads) == set(layer.params(shape))

    def difference(array, direction):
        """Return the slope of the sum of dy * y where an array moves in a direction."""
        value, sums = array.copy(), []
        for sign in (1, -1):
            array[...] = value + sign * step * direction
            y, _ = layer.forward(ops, x, copies(p), run)
            sums.append(float((dy * y).sum()))
        array[...] = value
        return (sums[0] - sums[1]) / (2 * step)

    # truncation is step**2 times a third derivative, rounding 1e-16 times the sum over the step
    for array, gradient in ((x, dx), *((p[name], grads[name]) for name in grads)):
        for direction in directions(ops, array.shape):
            slope = float((gradient * direction).sum())
            assert slope == pytest.approx(difference(array, direction), rel=0, abs=1e-8)


@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: str(v).replace(" ", ""))
def test_float32_stays_float32_and_dx_can_be_left_out(ops, layer, shape):
    n = 3
    x = spread(ops, n, *shape).astype(np.float32)
    p = {name: a.astype(np.float32) for name, a in state(ops, layer, shape).items()}
    run = local_run(layer, shape, n)
    y, saved = layer.forward(ops, x, p, run)
    dx, grads = layer.backward(ops, y, layer.tape(x, y, saved), p, run)
    assert {a.dtype for a in (y, dx, *grads.values(), *p.values())} == {np.dtype(np.float32)}
    run.need_dx = False
    none, again = layer.backward(ops, y, layer.tape(x, y, saved), p, run)
    assert none is None
    for name, gradient in grads.items():
        np.testing.assert_array_equal(host(again[name]), host(gradient))


@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: str(v).replace(" ", ""))
def test_empty_share(ops, layer, shape):
    p = state(ops, layer, shape)
    run = local_run(layer, shape, 0)
    run.count = 4
    x = spread(ops, 0, *shape)
    y, saved = layer.forward(ops, x, copies(p), run)
    assert y.shape == (0, *layer.out_shape(shape))
    dx, grads = layer.backward(ops, y, layer.tape(x, y, saved), p, run)
    assert dx.shape == (0, *shape)
    for name, gradient in grads.items():
        np.testing.assert_array_equal(host(gradient), np.zeros(p[name].shape))


def test_batch_norm_like_pytorch(ops):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    layer, shape = BatchNorm(0.2, 1e-3), (4, 3, 5)
    theirs = torch.nn.BatchNorm2d(4, eps=1e-3, momentum=0.2, dtype=torch.float64)
    p = state(ops, layer, shape)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(host(p["gamma"])))
        theirs.bias.copy_(torch.tensor(host(p["beta"])))
        theirs.running_mean.copy_(torch.tensor(host(p["mean"])))
        theirs.running_var.copy_(torch.tensor(host(p["var"])))
    for train in (True, True, False):
        x = spread(ops, 6, *shape)
        theirs.train(train)
        tx = torch.tensor(host(x), requires_grad=True)
        ty = theirs(tx)
        run = local_run(layer, shape, 6, train)
        y, saved = layer.forward(ops, x, p, run)
        dy = y * y
        theirs.zero_grad()
        ty.backward(torch.tensor(host(dy)))
        dx, grads = layer.backward(ops, dy, layer.tape(x, y, saved), p, run)
        for ours, expected in (
            (y, ty),
            (dx, tx.grad),
            (grads["gamma"], theirs.weight.grad),
            (grads["beta"], theirs.bias.grad),
            (p["mean"], theirs.running_mean),
            (p["var"], theirs.running_var),
        ):
            # sums of 90 terms of order 10 in another order
            np.testing.assert_allclose(host(ours), expected.detach().numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("space", ((), (3, 5)), ids=str)
def test_group_norm_like_pytorch(ops, space):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    layer, shape = GroupNorm(3, 1e-3), (6, *space)
    theirs = torch.nn.GroupNorm(3, 6, eps=1e-3, dtype=torch.float64)
    p, x = state(ops, layer, shape), spread(ops, 4, *shape) + 100
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(host(p["gamma"])))
        theirs.bias.copy_(torch.tensor(host(p["beta"])))
    tx = torch.tensor(host(x), requires_grad=True)
    ty = theirs(tx)
    run = local_run(layer, shape, 4)
    y, saved = layer.forward(ops, x, p, run)
    dy = y * y
    ty.backward(torch.tensor(host(dy)))
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, saved), p, run)
    pairs = [(y, ty), (dx, tx.grad)]
    pairs += [(grads["gamma"], theirs.weight.grad), (grads["beta"], theirs.bias.grad)]
    for ours, expected in pairs:
        # values of 100 keep 1e-14 of a deviation of 1; sums of 60 terms of order 10
        np.testing.assert_allclose(host(ours), expected.detach().numpy(), rtol=0, atol=1e-11)


def test_padding_of_four_numbers_like_pytorch(ops):
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    x = spread(ops, 2, 3, 7, 6)
    tx = torch.tensor(host(x))
    top, bottom, left, right = sides = (1, 0, 2, 1)

    def padded(value):
        return torch.nn.functional.pad(tx, (left, right, top, bottom), value=value)

    conv = Conv(2, 3, 2, sides, bias=False)
    w = state(ops, conv, (3, 7, 6))["w"]
    expected = torch.nn.functional.conv2d(padded(0.0), torch.tensor(host(w)), stride=2)
    y, _ = conv.forward(ops, x, {"w": w}, local_run(conv, (3, 7, 6), 2))
    np.testing.assert_allclose(host(y), expected.numpy(), rtol=0, atol=1e-13)
    for layer, value, theirs in (
        (MaxPool(4, 2, sides), -math.inf, torch.nn.functional.max_pool2d),
        (AvgPool(4, 2, sides), 0.0, torch.nn.functional.avg_pool2d),
    ):
        y, _ = layer.forward(ops, x, {}, local_run(layer, (3, 7, 6), 2))
        np.testing.assert_allclose(host(y), theirs(padded(value), 4, 2).numpy(), atol=1e-15)


def test_softmax_cross_entropy(ops):
    rng = np.random.default_rng(2)
    logits = ops.xp.asarray(rng.standard_normal((7, 6)))
    labels = rng.integers(0, 6, 7)
    loss = SoftmaxCrossEntropy()
    sums, saved = loss.forward(ops, logits, labels)
    total, correct1, correct5 = host(sums)
    probability = np.exp(host(logits)) / np.exp(host(logits)).sum(axis=1, keepdims=True)
    own = probability[np.arange(7), labels]
    # seven terms of order 1 by another formula
    assert total == pytest.approx(-np.log(own).sum(), abs=1e-13)
    assert correct1 == (own == probability.max(axis=1)).sum()
    assert correct5 == (own > probability.min(axis=1)).sum()
    expected = (probability - np.eye(6)[labels]) / 20
    np.testing.assert_allclose(host(loss.backward(ops, saved, 20)), expected, rtol=0, atol=1e-15)


def test_mixed_labels(ops):
    """The loss is that of soft targets: weight for an image's own label, the rest for the other."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((7, 6))
    own, other = rng.integers(0, 6, (2, 9))
    mixed = MixedLabels(own, other, 0.7)[1:8]
    loss = SoftmaxCrossEntropy()
    sums, saved = loss.forward(ops, ops.xp.asarray(logits), mixed)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    soft = 0.7 * np.eye(6)[own[1:8]] + 0.3 * np.eye(6)[other[1:8]]
    best = np.eye(6)[odds.argmax(axis=1)]
    # sums of seven terms of order 1 by other formulas
    assert host(sums)[0] == pytest.approx(-(soft * np.log(odds)).sum(), abs=1e-13)
    assert host(sums)[1] == pytest.approx((soft * best).sum(), abs=1e-13)
    found = host(loss.backward(ops, saved, 20))
    np.testing.assert_allclose(found, (odds - soft) / 20, rtol=0, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 4.0, 2.0, 0.25, 3.0)])
def test_smoothed_and_weighted_loss_is_pytorchs(ops, smoothing, weights):
    """A batch of 7 on two ranks, 3 + 4: what both sum is PyTorch's mean."""
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    rng = np.random.default_rng(2)
    logits, labels = 5 * rng.standard_normal((7, 6)), rng.integers(0, 6, 7)
    theirs = torch.tensor(logits, requires_grad=True)
    criterion = torch.nn.CrossEntropyLoss(
        torch.tensor(weights, dtype=torch.float64) if weights else None, label_smoothing=smoothing
    )
    expected = criterion(theirs, torch.tensor(labels))
    expected.backward()
    loss, total, parts = SoftmaxCrossEntropy(smoothing, weights).of(labels), 0.0, []
    for rows in (slice(0, 3), slice(3, 7)):
        sums, saved = loss.forward(ops, ops.upload(logits[rows]), labels[rows])
        total += float(host(sums)[0])
        parts.append(host(loss.backward(ops, saved, 7)))
    assert total / 7 == pytest.approx(expected.item(), rel=1e-13)
    np.testing.assert_allclose(np.concatenate(parts), theirs.grad, rtol=0, atol=1e-14)


def test_dropout_in_evaluation_changes_nothing(ops):
    x = spread(ops, 2, 3)
    layer = Dropout()
    y, saved = layer.forward(ops, x, {}, local_run(layer, (3,), 2, train=False))
    np.testing.assert_array_equal(host(y), host(x))
    assert saved is None


def test_lrn_of_the_paper():
    """Krizhevsky et al. 2012 multiply the bare sum by alpha: size * alpha is the same here."""
    ops, x = load("numpy"), np.random.default_rng(0).standard_normal((2, 7, 3, 3)) * 20
    layer = LRN(5, 5 * 1e-4, 0.75, 2.0)
    y, _ = layer.forward(ops, x, {}, local_run(layer, (7, 3, 3), 2))
    for c in range(7):
        near = x[:, max(0, c - 2) : c + 3]
        expected = x[:, c] / (2 + 1e-4 * (near**2).sum(axis=1)) ** 0.75
        # one power and five additions, rounded otherwise
        np.testing.assert_allclose(y[:, c], expected, rtol=1e-14)


@pytest.mark.parametrize(
    "layer, names",
    (
        (Conv(2, 3), {"w": (2, 3, 3, 3), "b": (2,)}),
        (Conv(6, (1, 2), groups=3, bias=False), {"w": (6, 1, 1, 2)}),
        (BatchNorm(), {"gamma": (3,), "beta": (3,)}),
        (MaxPool(2), {}),
    ),
)
def test_params(layer, names):
    params = layer.params((3, 5, 5))
    assert {name: param.shape for name, param in params.items()} == names
    assert [name for name, param in params.items() if not param.bias] == ["w"] * ("w" in names)


def test_starting_values():
    conv = Conv(6, (3, 2), groups=2, init=0.01).params((4, 5, 5))
    assert (conv["w"].init, conv["w"].fan_in, conv["b"].init) == (0.01, 12, "zeros")
    linear = Linear(5, init="xavier").params((7,))
    assert (linear["w"].init, linear["w"].fan_in) == ("xavier", 7)
    grouped = Linear(6, groups=3).params((9,))["w"]
    assert (grouped.shape, grouped.fan_in) == ((6, 3), 3)
    assert {name: b.init for name, b in BatchNorm().buffers((3,)).items()} == {
        "mean": "zeros",
        "var": "ones",
    }


def test_pairs_and_numbers_are_the_same_layer():
    assert Conv(2, 3, padding=[1, 1]) == Conv(2, (3, 3), (1, 1), 1)
    assert hash(MaxPool(2)) == hash(MaxPool(2, 2))
    assert MaxPool((3, 2)).stride == (3, 2)
    assert Conv(2, 3, padding=(1, 1, 2, 2)) == Conv(2, 3, padding=(1, 2))
    assert Conv(2, 3, padding=[1, 1]).padding == (1, 1)
    assert Conv(2, 3, padding=(0, 1, 2, 2)).padding == (0, 1, 2, 2)
    assert "kernel=(3, 3), stride=(1, 1)" in repr(Conv(2, 3))


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: Conv(0, 3), "Conv: o is 0"),
        (lambda: Conv(2, 0), "Conv: kernel is 0"),
        (lambda: Conv(2, 3, stride=(1, 0)), "Conv: stride"),
        (lambda: Conv(2, 3, padding=-1), "Conv: padding is -1: give an integer of at least 0"),
        (lambda: Conv(2, 3, padding=(1, 1, 1)), "two, or four: top, bottom, left, right"),
        (lambda: Conv(2, 3, stride=(1, 1, 1, 1)), "Conv: stride"),
        (lambda: Conv(2, 3, dilation=1.5), "Conv: dilation"),
        (lambda: Conv(2, (3, 3, 3)), "Conv: kernel"),
        (lambda: Conv(2, None), "Conv: kernel is None"),
        (lambda: Conv(2, 3, groups=True), "Conv: groups"),
        (lambda: Conv(5, 3, groups=2), "5 outputs do not divide into 2 groups"),
        (lambda: Conv(5, 3, init="random"), "Conv: init"),
        (lambda: Linear("10"), "Linear: o"),
        (lambda: Linear(10, init=-0.1), "Linear: init"),
        (lambda: Linear(10, groups=0), "Linear: groups is 0"),
        (lambda: Linear(10, groups=3), "10 outputs do not divide into 3 groups"),
        (lambda: Linear(10, groups=5).out_shape((7,)), "7 inputs do not divide into 5 groups"),
        (lambda: MaxPool(3, padding=2), "MaxPool: padding"),
        (lambda: MaxPool(3, padding=(1, 1, 0, 2)), "MaxPool: padding"),
        (lambda: MaxPool(3, dilation=0), "MaxPool: dilation"),
        (lambda: MaxPool(2, 1, 1, dilation=4).out_shape((1, 3, 9)), "nothing of the image"),
        (lambda: MaxPool(3, dilation=3).out_shape((1, 6, 9)), "with dilation .* is larger"),
        (lambda: GroupNorm(0), "GroupNorm: groups"),
        (lambda: GroupNorm(3).out_shape((4, 2, 2)), "4 channels do not divide into 3 groups"),
        (lambda: LeakyReLU(-0.1), "LeakyReLU: slope"),
        (lambda: AvgPool("3"), "AvgPool: kernel"),
        (lambda: LRN(0), "LRN: size"),
        (lambda: LRN(5, alpha=float("nan")), "LRN: alpha"),
        (lambda: LRN(5, k=0), "LRN: k is 0"),
        (lambda: BatchNorm(momentum=1.1), "BatchNorm: momentum"),
        (lambda: BatchNorm(eps=-1), "BatchNorm: eps"),
        (lambda: Dropout(1), "Dropout: rate is 1"),
        (lambda: Dropout(-0.1), "Dropout: rate"),
        (lambda: Conv(4, 5).out_shape((3, 4, 8)), "larger than the image"),
        (lambda: Conv(4, 3, dilation=2).out_shape((3, 4, 4)), "larger than the image"),
        (lambda: Conv(4, 3, groups=2).out_shape((3, 8, 8)), "3 input channels do not divide"),
        (lambda: Conv(4, 3).out_shape((3,)), "in front of Flatten"),
        (lambda: MaxPool(3).out_shape((4, 2, 5)), "MaxPool: kernel"),
        (lambda: LRN().out_shape((10,)), "in front of Flatten"),
        (lambda: Linear(4).out_shape((3, 2, 2)), "put Flatten in front"),
    ),
)
def test_refusals(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
