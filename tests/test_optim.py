"""The update, the schedules and the scaling rules, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mpicnn.ops.numpy as ops
from mpicnn.errors import UserError
from mpicnn.layers.base import Array, Param
from mpicnn.step.optimiser import Hyper, update
from mpicnn.step.rates import RateSchedule, scale
from mpicnn.step.state import State

# Values that float64 holds to 16 digits and that a handful of operations round.
CLOSE = {"rel": 1e-12, "abs": 0.0}


def factors(schedule: RateSchedule, total: int) -> list[float]:
    return [schedule.factor_at(step, total) for step in range(total)]


def test_constant_stays() -> None:
    assert factors(RateSchedule(), 3) == [1.0, 1.0, 1.0]


def test_steps_drop_at_their_fractions() -> None:
    schedule = RateSchedule("steps", drops=(0.1, 0.5), drop_factor=0.5)
    assert factors(schedule, 10) == [1.0] + 4 * [0.5] + 5 * [0.25]
    # Step 7 of 100 is 0.07 exactly, though 0.07 * 100 is above 7 in floating point.
    assert factors(RateSchedule("steps", drops=(0.07,)), 100)[6:8] == [1.0, 0.1]


def test_dexp_has_the_levels_of_owt() -> None:
    levels = [1.0, 0.158740105, 0.0251984210, 0.004]  # 250^(-i/3), 9 digits
    got = factors(RateSchedule("dexp"), 90)
    for level, start, stop in zip(levels, (0, 23, 45, 68), (23, 45, 68, 90), strict=True):
        assert got[start:stop] == pytest.approx((stop - start) * [level], rel=1e-8)


def test_dexp_changes_at_exact_quarters() -> None:
    got = factors(RateSchedule("dexp"), 8)
    assert [got.index(level) for level in sorted(set(got), reverse=True)] == [0, 2, 4, 6]


def test_cosine_falls_from_one_to_nearly_zero() -> None:
    half = 0.5**0.5
    assert factors(RateSchedule("cosine"), 4) == pytest.approx(
        [1.0, (1 + half) / 2, 0.5, (1 - half) / 2], **CLOSE
    )


def test_polynomial_falls_from_one_to_nothing() -> None:
    assert factors(RateSchedule("polynomial"), 4) == [1.0, 0.5625, 0.25, 0.0625]
    later = factors(RateSchedule("polynomial", warmup=2, power=3), 6)
    assert later == pytest.approx([0.5, 1.0, 1.0, 0.75**3, 0.5**3, 0.25**3], **CLOSE)


@pytest.mark.parametrize("kind", ["constant", "steps", "dexp", "cosine", "polynomial"])
def test_warmup_rises_linearly_and_ends(kind: str) -> None:
    schedule = RateSchedule(kind, drops=(0.5,), warmup=4)
    assert factors(schedule, 100)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_begins_after_the_warmup() -> None:
    got = factors(RateSchedule("cosine", warmup=2), 6)
    assert got[:2] == [0.5, 1.0]
    assert got[2:] == pytest.approx(factors(RateSchedule("cosine"), 4), **CLOSE)


def test_warmup_of_a_fraction_of_a_step_or_longer_than_the_run() -> None:
    assert factors(RateSchedule(warmup=2.5), 4) == [0.4, 0.8, 1.0, 1.0]
    assert factors(RateSchedule("cosine", warmup=8), 2) == [0.125, 0.25]


def test_rate_is_the_factor_of_the_rate() -> None:
    hyper = Hyper(0.04, schedule=RateSchedule("steps", drops=(0.5,)))
    assert [hyper.rate_at(step, 4) for step in range(4)] == pytest.approx(
        [0.04, 0.04, 0.004, 0.004], **CLOSE
    )


@pytest.mark.parametrize("step", [-1, 7, 8])
def test_no_rate_outside_the_run(step: int) -> None:
    with pytest.raises(ValueError, match="step"):
        RateSchedule().factor_at(step, 7)


def test_scaling_rules_by_hand() -> None:
    assert scale(0.01, 5e-4, 512, 128, "none") == (0.01, 5e-4)
    assert scale(0.01, 5e-4, 512, 128, "linear") == (0.04, 5e-4)
    assert scale(0.01, 5e-4, 512, 128, "sqrt") == (0.02, 5e-4)
    # 1 - 0.9^4 = 0.3439, over sqrt(4) * 0.2.
    assert scale(0.2, 0.5, 512, 128, "owt") == (0.4, pytest.approx(0.3439 / 0.4, **CLOSE))


@pytest.mark.parametrize(("batch", "reference"), [(1024, 128), (96, 128), (7, 3), (128, 128)])
def test_owt_decay_shrinks_as_k_steps_did(batch: int, reference: int) -> None:
    rate, decay, k = 0.3, 0.7, batch / reference
    large_rate, large_decay = scale(rate, decay, batch, reference, "owt")
    assert 1 - large_rate * large_decay == pytest.approx((1 - rate * decay) ** k, **CLOSE)


def test_owt_decay_is_about_sqrt_k_decay() -> None:
    # The next term of the series is (k - 1) rate decay / 2 of the first: 1.75e-5 here.
    assert scale(0.01, 5e-4, 1024, 128, "owt")[1] == pytest.approx(8**0.5 * 5e-4, rel=2e-5)
    assert scale(1e-300, 5e-4, 512, 128, "owt")[1] == pytest.approx(1e-3, **CLOSE)
    assert scale(0.0, 5e-4, 512, 128, "owt") == (0.0, 1e-3)
    assert scale(0.01, 0.0, 512, 128, "owt") == (0.02, 0.0)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hyper(NAN),
        lambda: Hyper(INF),
        lambda: Hyper(-0.1),
        lambda: Hyper(0.1, momentum=1.0),
        lambda: Hyper(0.1, momentum=-0.5),
        lambda: Hyper(0.1, momentum=NAN),
        lambda: Hyper(0.1, decay=-1e-4),
        lambda: Hyper(0.1, decay=NAN),
        lambda: Hyper(0.1, bias_rate=-1.0),
        lambda: Hyper(0.1, optimiser="adam"),
        lambda: Hyper(0.1, beta1=1.0),
        lambda: Hyper(0.1, beta2=-0.1),
        lambda: Hyper(0.1, eps=0.0),
        lambda: Hyper(0.1, trust=0.0),
        lambda: Hyper(0.1, clip=-1.0),
        lambda: Hyper(0.1, ema=1.0),
        lambda: RateSchedule("polynomial", power=0.0),
        lambda: RateSchedule("exponential"),
        lambda: RateSchedule("steps", drops=(0.5, 0.5)),
        lambda: RateSchedule("steps", drops=(0.75, 0.5)),
        lambda: RateSchedule("steps", drops=(0.0, 0.5)),
        lambda: RateSchedule("steps", drops=(0.5, 1.0)),
        lambda: RateSchedule("steps", drops=(NAN,)),
        lambda: RateSchedule("steps", drops=(0.5,), drop_factor=0.0),
        lambda: RateSchedule("steps", drops=(0.5,), drop_factor=NAN),
        lambda: RateSchedule(warmup=-1),
        lambda: RateSchedule(warmup=INF),
        lambda: scale(0.1, 0.0, 0, 128, "linear"),
        lambda: scale(0.1, 0.0, 128, 0, "linear"),
        lambda: scale(NAN, 0.0, 128, 128, "linear"),
        lambda: scale(2.0, 0.5, 256, 128, "owt"),
        lambda: scale(0.1, 0.0, 128, 128, "cubic"),
    ],
)
def test_impossible_values_are_user_errors(make: Any) -> None:
    with pytest.raises(UserError, match="expected") as caught:
        make()
    assert "\n" not in str(caught.value)


SPECS = {
    "conv1.w": Param((5, 3, 2, 1), "he"),
    "conv1.b": Param((5,), "zeros", bias=True),
    "fc2.w": Param((7, 11), "he"),
    "fc2.b": Param((0,), "zeros", bias=True),  # a share of none
}


def arrays(seed: int, dtype: str = "float64") -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=spec.shape).astype(dtype) for name, spec in SPECS.items()}


def zeros_like(params: dict[str, Array]) -> dict[str, Array]:
    return {name: np.zeros_like(w) for name, w in params.items()}


def test_update_is_its_formula() -> None:
    params, velocity = arrays(1), arrays(2)
    expected = {name: [w.ravel().tolist(), velocity[name].ravel().tolist()]
                for name, w in params.items()}  # fmt: skip
    rate, momentum, decay, bias_rate = 0.3, 0.9, 0.05, 2.0
    for step in range(3):
        grads = arrays(10 + step)
        update(
            ops,
            State(params, velocity),
            grads,
            SPECS,
            Hyper(rate, momentum, decay, bias_rate),
            rate,
        )
        for name, (ws, vs) in expected.items():
            bias = name.endswith(".b")
            for i, g in enumerate(grads[name].ravel().tolist()):
                if bias:
                    vs[i] = momentum * vs[i] - rate * bias_rate * g
                else:
                    vs[i] = momentum * vs[i] - rate * (g + decay * ws[i])
                ws[i] += vs[i]
    for name, (ws, vs) in expected.items():
        # Three steps of four roundings each, whatever their order.
        np.testing.assert_allclose(params[name].ravel(), ws, rtol=1e-13, atol=1e-14)
        np.testing.assert_allclose(velocity[name].ravel(), vs, rtol=1e-13, atol=1e-14)


def test_update_leaves_what_has_no_gradient() -> None:
    params, grads = arrays(1), arrays(2)
    velocity = zeros_like(params)
    conv = {name: grads[name] for name in ("conv1.w", "conv1.b")}
    update(ops, State(params, velocity), conv, SPECS, Hyper(0.1, 0.9, 0.01), 0.1)
    before = arrays(1)
    assert not np.array_equal(params["conv1.w"], before["conv1.w"])
    assert np.array_equal(params["fc2.w"], before["fc2.w"])
    assert not velocity["fc2.w"].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_update_is_in_place_and_keeps_the_dtype(dtype: str) -> None:
    params = arrays(1, dtype)
    velocity = zeros_like(params)
    held = {name: (w, velocity[name]) for name, w in params.items()}
    update(ops, State(params, velocity), arrays(2, dtype), SPECS, Hyper(0.1, 0.9, 0.01, 2.0), 0.1)
    for name, (w, v) in held.items():
        assert params[name] is w and velocity[name] is v
        assert w.dtype == v.dtype == dtype


def test_one_owt_step_shrinks_a_weight_like_k_small_ones() -> None:
    def shrunk(rate: float, decay: float, steps: int) -> float:
        params = {"fc2.w": np.ones((7, 11))}
        grads = {"fc2.w": np.zeros((7, 11))}
        for _ in range(steps):
            update(
                ops, State(params, zeros_like(params)), grads, SPECS, Hyper(rate, 0.0, decay), rate
            )
        return float(params["fc2.w"][3, 4])

    small, large = (0.3, 0.2), scale(0.3, 0.2, 5, 1, "owt")
    assert shrunk(*large, 1) == pytest.approx(shrunk(*small, 5), **CLOSE)
    assert shrunk(*large, 1) != pytest.approx(shrunk(*scale(0.3, 0.2, 5, 1, "sqrt"), 1), rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_update_agrees_with_torch_at_a_constant_rate(momentum: float) -> None:
    """PyTorch keeps b <- mu b + (g + w decay), w <- w - rate b: v = -rate b while rate is fixed."""
    torch = pytest.importorskip("torch")
    rate, decay = 0.05, 0.01
    params = arrays(1)
    velocity = zeros_like(params)
    theirs = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in params.items()}
    weights, biases = (
        [theirs[name] for name, spec in SPECS.items() if spec.bias is bias]
        for bias in (False, True)
    )
    groups = [
        {"params": weights, "weight_decay": decay},
        {"params": biases, "lr": 2 * rate},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum)
    for step in range(4):
        grads = arrays(10 + step)
        for name, g in grads.items():
            theirs[name].grad = torch.tensor(g)
        optimizer.step()
        update(ops, State(params, velocity), grads, SPECS, Hyper(rate, momentum, decay, 2.0), rate)
    for name, w in params.items():
        # The same products in another order: a few roundings of numbers of order 1.
        np.testing.assert_allclose(w, theirs[name].detach().numpy(), rtol=1e-12, atol=1e-14)
        if momentum:
            b = optimizer.state[theirs[name]]["momentum_buffer"].numpy()
            lr = 2 * rate if SPECS[name].bias else rate
            np.testing.assert_allclose(velocity[name], -lr * b, rtol=1e-12, atol=1e-14)
