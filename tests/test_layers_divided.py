"""A layer on the parts of a tensor computes the parts of what it computes on the whole."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from threading import Barrier

import numpy as np
import pytest
from backends import host

from mpicnn.layers import BatchNorm, Context, Conv, Dropout, Flatten, Linear
from mpicnn.layers.base import Tape

rng = np.random.default_rng(5)


def run_of(channels, rows=(0, 6), **more):
    return Context(True, 4, 1, 2, 6, np.arange(*rows), channels, **more)


def close(parts, whole, axis):
    # sums of up to a few hundred terms of order 1 in another order
    joined = np.concatenate([host(part) for part in parts], axis)
    np.testing.assert_allclose(joined, host(whole), rtol=0, atol=1e-11)


@pytest.mark.parametrize("bounds", ((0, 1, 6), (0, 0, 4, 4, 6), (0, 2, 3, 6)), ids=str)
@pytest.mark.parametrize("space", ((), (3, 2)))
def test_batch_norm_over_a_divided_batch(ops, bounds, space):
    layer = BatchNorm()
    # a mean far from 0: a variance from sums of squares would lose half of its digits
    x = ops.xp.asarray(rng.standard_normal((6, 5, *space)) + 1e4)
    dy = ops.xp.asarray(rng.standard_normal(x.shape))
    ranks = len(bounds) - 1
    barrier, slots = Barrier(ranks), [None] * ranks

    def work(rank, lo, hi):
        def batch_sum(partial):
            assert partial.size in (20, 10) and partial.dtype == np.float64
            slots[rank] = partial
            barrier.wait(10)
            total = sum(slots[1:], start=slots[0])
            barrier.wait(10)
            return total

        p = parameters()
        run = run_of((0, 5), (lo, hi), batch_sum=batch_sum)
        y, made = layer.forward(ops, x[lo:hi], p, run)
        tape = layer.tape(x[lo:hi], y, made)
        return y, *layer.backward(ops, dy[lo:hi], tape, p, run), p

    def parameters():
        p = {"gamma": np.arange(5) + 1.0, "beta": np.arange(5) - 2.0}
        p |= {"mean": np.zeros(5), "var": np.ones(5)}
        return {name: ops.xp.asarray(a) for name, a in p.items()}

    with ThreadPoolExecutor(ranks) as pool:
        parts = list(pool.map(work, range(ranks), bounds[:-1], bounds[1:]))
    p, run = parameters(), run_of((0, 5))
    y, made = layer.forward(ops, x, p, run)
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, made), p, run)
    # rounding 1e-16 of values of 1e4 against a deviation of 1
    for part, whole in zip(zip(*(q[:2] for q in parts), strict=True), (y, dx), strict=True):
        joined = np.concatenate([host(a) for a in part])
        np.testing.assert_allclose(joined, host(whole), rtol=0, atol=1e-10)
    for name in grads:
        total = sum(host(q[2][name]) for q in parts)
        np.testing.assert_allclose(total, host(grads[name]), rtol=0, atol=1e-10)
    assert layer.batch_sums((5, *space)) == ((20,), (10,))
    for name in ("mean", "var"):
        assert not np.allclose(host(p[name]), {"mean": 0, "var": 1}[name], atol=1e-6)
        for q in parts:
            np.testing.assert_allclose(host(q[3][name]), host(p[name]), rtol=1e-12)


@pytest.mark.parametrize("dtype, mean", (("float32", 1e4), ("float64", -1e4)))
@pytest.mark.parametrize("running", (0.0, 1.0), ids=("at first", "in the end"))
def test_variance_where_the_mean_is_large(ops, dtype, mean, running):
    """The deviation is 1, the ranks' means differ, and the running mean is far away or close."""
    draw = np.random.default_rng(3)
    x = (draw.standard_normal((60, 3, 4, 4)) + mean).astype(dtype)
    x[:20] += 2
    # of ten times the digits of x; ranks with 1, 19, 0 and 40 examples
    exact = x.astype(np.longdouble)
    expected_mean = exact.mean(axis=(0, 2, 3))
    expected = ((exact - expected_mean[:, None, None]) ** 2).mean(axis=(0, 2, 3))
    sent = []

    def of_rank(lo, hi, batch_sum):
        p = {"gamma": np.ones(3), "beta": np.zeros(3), "mean": np.full(3, running * mean)}
        p = {name: ops.xp.asarray(a.astype(dtype)) for name, a in (p | {"var": np.ones(3)}).items()}
        run = Context(True, 0, 1, 0, 60, np.arange(lo, hi), (0, 3), batch_sum=batch_sum)
        y, _ = BatchNorm(momentum=1.0).forward(ops, ops.xp.asarray(x[lo:hi]), p, run)
        return host(y), host(p["mean"]), host(p["var"])

    def collect(partial):
        sent.append(partial)
        return partial

    bounds = (0, 1, 20, 20, 60)
    for lo, hi in pairwise(bounds):
        of_rank(lo, hi, collect)
    total = sum(sent[1:], start=sent[0])
    eps = np.finfo(dtype).eps
    for lo, hi in pairwise(bounds):
        y, found_mean, found = of_rank(lo, hi, lambda partial: total)
        # the running variance is the unbiased one: of 960 values
        close = 1e-12 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(found * (959 / 960), expected.astype(dtype), rtol=close)
        np.testing.assert_allclose(found_mean, expected_mean.astype(dtype), rtol=2 * eps)
        by_hand = (exact[lo:hi] - expected_mean[:, None, None]) / np.sqrt(expected + 1e-5)[
            :, None, None
        ]
        np.testing.assert_allclose(y, by_hand.astype(dtype), rtol=0, atol=10 * close)


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("groups", (1, 2, 3, 6))
@pytest.mark.parametrize(
    "bounds", ((0, 1, 12), (0, 0, 5, 12, 12), (0, 4, 8, 12), (0, 3, 7, 11, 12)), ids=str
)
def test_convolution_divided_by_outputs(ops, bounds, groups, bias):
    layer, shape = Conv(12, (3, 2), (2, 1), 1, groups=groups, bias=bias), (6, 5, 4)
    p = {
        name: ops.xp.asarray(rng.standard_normal(param.shape))
        for name, param in layer.params(shape).items()
    }
    x = ops.xp.asarray(rng.standard_normal((6, *shape)))
    y, made = layer.forward(ops, x, p, run_of((0, 12)))
    dy = ops.xp.asarray(rng.standard_normal(y.shape))
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, made), p, run_of((0, 12)))
    ys, dxs, parts = [], [], []
    for lo, hi in pairwise(bounds):
        rows = {name: a[lo:hi] for name, a in p.items()}
        run = run_of((lo, hi))
        part, made = layer.forward(ops, x, rows, run)
        ys.append(part)
        tape = layer.tape(x, part, made)
        part_dx, part_grads = layer.backward(ops, dy[:, lo:hi], tape, rows, run)
        dxs.append(part_dx)
        parts.append(part_grads)
    close(ys, y, 1)
    np.testing.assert_allclose(sum(host(a) for a in dxs), host(dx), rtol=0, atol=1e-11)
    for name in p:
        close([part[name] for part in parts], grads[name], 0)


@pytest.mark.parametrize("layer, space", ((Conv(4, 3), (5, 4)), (Linear(4), ())))
@pytest.mark.parametrize("bounds", ((0, 0, 5), (0, 2, 3, 5)), ids=str)
def test_contraction_divided_by_inputs(ops, layer, space, bounds):
    shape = (5, *space)
    w = ops.xp.asarray(rng.standard_normal(layer.params(shape)["w"].shape))
    b = ops.xp.asarray(rng.standard_normal(4))
    x = ops.xp.asarray(rng.standard_normal((6, *shape)))
    run = run_of((0, 4))
    y, made = layer.forward(ops, x, {"w": w, "b": b}, run)
    dy = ops.xp.asarray(rng.standard_normal(y.shape))
    dx, grads = layer.backward(ops, dy, layer.tape(x, y, made), {"w": w, "b": b}, run)
    sums, dxs, dws = 0, [], []
    for rank, (lo, hi) in enumerate(pairwise(bounds)):
        # the bias is added once to the sum of the parts: on the last rank
        p = {"w": w[:, lo:hi]} | ({"b": b} if rank == len(bounds) - 2 else {})
        part, made = layer.forward(ops, x[:, lo:hi], p, run)
        sums = sums + host(part)
        tape = layer.tape(x[:, lo:hi], part, made)
        part_dx, part_grads = layer.backward(ops, dy, tape, p, run)
        assert set(part_grads) == set(p)
        dxs.append(part_dx)
        dws.append(part_grads["w"])
    np.testing.assert_allclose(sums, host(y), rtol=0, atol=1e-11)
    close(dxs, dx, 1)
    close(dws, grads["w"], 1)


@pytest.mark.parametrize("shape", ((6, 7), (6, 7, 3, 2)), ids=str)
def test_dropout_on_any_part_has_the_same_mask(ops, shape):
    x = ops.xp.asarray(rng.standard_normal(shape))
    layer = Dropout(0.5)
    whole, _ = layer.forward(ops, x, {}, run_of((0, 7)))
    assert 0 < int((whole == 0).sum()) < whole.size
    for rows in ((0, 1), (1, 1), (1, 6)):
        for lo, hi in ((0, 3), (3, 4), (4, 4), (4, 7)):
            run = run_of((lo, hi), rows)
            part = (slice(*rows), slice(lo, hi))
            y, made = layer.forward(ops, x[part], {}, run)
            np.testing.assert_array_equal(host(y), host(whole[part]))
            dx, _ = layer.backward(ops, x[part], layer.tape(x[part], y, made), {}, run)
            np.testing.assert_array_equal(host(dx), host(y))


def test_dropout_follows_positions_not_places(ops):
    x = ops.xp.ones((6, 9))
    layer, run = Dropout(0.5), run_of((0, 9))
    whole, _ = layer.forward(ops, x, {}, run)
    run.positions = np.array([5, 0, 3])
    picked, _ = layer.forward(ops, x[:3], {}, run)
    np.testing.assert_array_equal(host(picked), host(whole)[[5, 0, 3]])


def test_channels_flatten_to_ranges_of_features(ops):
    x = ops.xp.asarray(rng.standard_normal((6, 5, 2, 3)))
    whole, _ = Flatten().forward(ops, x, {}, run_of((0, 30)))
    part, made = Flatten().forward(ops, x[:, 2:4], {}, run_of((12, 24)))
    np.testing.assert_array_equal(host(part), host(whole)[:, 12:24])
    back, _ = Flatten().backward(ops, part, Tape(made=made), {}, run_of((12, 24)))
    np.testing.assert_array_equal(host(back), host(x)[:, 2:4])
