"""Every optimiser on one rank against PyTorch's, or the formula of its paper written out."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from backends import host

from mpicnn.layers.base import Param
from mpicnn.step.norms import Norms
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.rates import RateSchedule
from mpicnn.step.state import State, kept_by

torch = pytest.importorskip("torch", reason="the reference is PyTorch: pip install mpicnn[torch]")

SPECS = {
    "conv1.w": Param((5, 3, 2, 1), "he"),
    "conv1.b": Param((5,), "zeros", bias=True),
    "fc2.w": Param((7, 11), "he"),
    "fc2.b": Param((7,), "zeros", bias=True),
}
HEAD, HEAD_RATE, BIAS_RATE = frozenset(("fc2.w", "fc2.b")), 0.25, 2.0
STEPS, RATE, DECAY = 6, 0.02, 0.1


def draw(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(spec.shape) for name, spec in SPECS.items()}


def gradients(step: int) -> dict[str, Any]:
    # large and small ones, so that some are clipped and others not
    return {name: (3.0, 0.3)[step % 2] * g for name, g in draw(10 + step).items()}


def learn(ops: Any, **how: Any) -> State:
    """Return the state after some steps of an optimiser of ours."""
    hyper = Hyper(RATE, decay=DECAY, bias_rate=BIAS_RATE, **how)
    state = State(draw(1))
    state.buffers = {"norm.mean": np.zeros(3)}
    for section in kept_by(hyper.optimiser, hyper.ema):
        kept = state.params | state.buffers if section == "ema" else draw(1)
        zero = 1.0 if section == "ema" else 0.0
        vars(state)[section] = {name: zero * a for name, a in kept.items()}
    state = state.on(ops)
    norms = Norms(tuple(SPECS), frozenset(SPECS))
    optimiser = Optimiser(ops, state, SPECS, hyper, STEPS, HEAD, HEAD_RATE, norms=norms)
    for step in range(STEPS):
        grads = {name: ops.upload(g) for name, g in gradients(step).items()}
        optimiser.apply(grads, step, lambda sums: sums)
        state.buffers["norm.mean"] += 1.0
        optimiser.average()
    return state


def rate_of(name: str) -> float:
    return RATE * (BIAS_RATE if SPECS[name].bias else 1) * (HEAD_RATE if name in HEAD else 1)


def torch_learn(make: Any, clip: float = 0.0) -> dict[str, Any]:
    """Return the parameters after the same steps of an optimiser of PyTorch."""
    params = {name: torch.nn.Parameter(torch.tensor(w)) for name, w in draw(1).items()}
    groups = [
        {"params": [w], "lr": rate_of(name), "weight_decay": 0.0 if SPECS[name].bias else DECAY}
        for name, w in params.items()
    ]
    optimizer = make(groups)
    for step in range(STEPS):
        for name, g in gradients(step).items():
            params[name].grad = torch.tensor(g)
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
    return {name: w.detach().numpy() for name, w in params.items()}


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, w in expected.items():
        np.testing.assert_allclose(host(found[name]), w, rtol=1e-12, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_nesterov_is_pytorchs(ops, clip):
    expected = torch_learn(
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True), clip
    )
    agree(learn(ops, nesterov=True, clip=clip).params, expected)


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_sgd_with_clipping_is_pytorchs(ops, clip):
    expected = torch_learn(lambda groups: torch.optim.SGD(groups, momentum=0.9), clip)
    agree(learn(ops, clip=clip).params, expected)


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_adamw_is_pytorchs(ops, clip):
    betas, eps = (0.8, 0.95), 1e-3
    expected = torch_learn(lambda groups: torch.optim.AdamW(groups, betas=betas, eps=eps), clip)
    found = learn(ops, optimiser="adamw", beta1=betas[0], beta2=betas[1], eps=eps, clip=clip)
    agree(found.params, expected)


def norm(a: Any) -> float:
    return sqrt(float((a * a).sum()))


def clipped(grads: dict[str, Any], clip: float) -> dict[str, Any]:
    whole = sqrt(sum(norm(g) ** 2 for g in grads.values()))
    return {name: g * min(1.0, clip / (whole + 1e-6)) if clip else g for name, g in grads.items()}


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_lars_is_its_papers_formula(ops, clip):
    """You, Gitman, Ginsburg 2017, algorithm 1: local rates for all that decays."""
    params, trust, mu = draw(1), 0.01, 0.7
    velocity = {name: 0 * w for name, w in params.items()}
    for step in range(STEPS):
        gamma = (1 - step / STEPS) ** 2
        for name, g in clipped(gradients(step), clip).items():
            w, bias = params[name], SPECS[name].bias
            beta = 0.0 if bias else DECAY
            local = 1.0 if bias else trust * norm(w) / (norm(g) + beta * norm(w))
            velocity[name] = mu * velocity[name] + gamma * rate_of(name) * local * (g + beta * w)
            params[name] = w - velocity[name]
    schedule = RateSchedule("polynomial")
    found = learn(ops, optimiser="lars", trust=trust, momentum=mu, schedule=schedule, clip=clip)
    agree(found.params, params)


@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_lamb_is_its_papers_formula(ops, clip):
    """You et al. 2020, algorithm 2, with the identity for phi: local rates for all that decays."""
    params, b1, b2, eps = draw(1), 0.8, 0.95, 1e-3
    m = {name: 0 * w for name, w in params.items()}
    v = {name: 0 * w for name, w in params.items()}
    for step in range(STEPS):
        for name, g in clipped(gradients(step), clip).items():
            w, bias = params[name], SPECS[name].bias
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g**2
            t = step + 1
            r = m[name] / (1 - b1**t) / (np.sqrt(v[name] / (1 - b2**t)) + eps)
            u = r if bias else r + DECAY * w
            local = 1.0 if bias else norm(w) / norm(u)
            params[name] = w - rate_of(name) * local * u
    found = learn(ops, optimiser="lamb", beta1=b1, beta2=b2, eps=eps, clip=clip)
    agree(found.params, params)
    agree(found.moment1, m)
    agree(found.moment2, v)


@pytest.mark.parametrize("optimiser", ["lars", "lamb"])
def test_a_weight_of_zeros_begins_to_move(ops, optimiser):
    """Its norm, or that of its gradient, gives no rate: it has the run's."""
    state = State({"w": np.zeros((2, 2))})
    for section in kept_by(optimiser, 0.0):
        vars(state)[section] = {"w": np.zeros((2, 2))}
    state = state.on(ops)
    hyper = Hyper(0.5, optimiser=optimiser)
    norms = Norms(("w",), frozenset("w"))
    rule = Optimiser(ops, state, {"w": Param((2, 2), "he")}, hyper, 2, norms=norms)
    rule.apply({"w": ops.upload(np.ones((2, 2)))}, 0, lambda sums: sums)
    # the direction of Adam's first step is 1
    np.testing.assert_allclose(host(state.params["w"]), -0.5, rtol=1e-7)
    rule.apply({"w": ops.upload(np.zeros((2, 2)))}, 1, lambda sums: sums)
    assert np.isfinite(host(state.params["w"])).all()


def test_ema_is_the_running_mean_of_weights_and_statistics(ops):
    state, decay = learn(ops, ema=0.9), 0.9
    mean, buffer = draw(1), np.zeros(3)
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    params = draw(1)
    velocity = {name: 0 * w for name, w in params.items()}
    for step in range(STEPS):
        for name, g in gradients(step).items():
            change = g + (0.0 if SPECS[name].bias else DECAY) * params[name]
            velocity[name] = 0.9 * velocity[name] - rate_of(name) * change
            params[name] = params[name] + velocity[name]
        theirs = [torch.tensor(a) for a in (*mean.values(), buffer)]
        held = (*params.values(), np.full(3, step + 1.0))
        average(theirs, [torch.tensor(a) for a in held], step)
        mean = dict(zip(mean, (a.numpy() for a in theirs), strict=False))
        buffer = theirs[-1].numpy()
    agree(state.ema, {**mean, "norm.mean": buffer})
    tested = state.tested
    assert tested.params["fc2.w"] is state.ema["fc2.w"]
    assert tested.buffers == {"norm.mean": state.ema["norm.mean"]}


def test_ema_of_single_precision_does_not_drift(ops):
    """A decay near 1, rounded to float32, would pull a mean of equal numbers away from them."""
    w = np.full((1000,), 3.0, np.float32)
    state = State({"w": w}, ema={"w": w.copy()}).on(ops)
    hyper = Hyper(0.1, ema=0.9999)
    rule = Optimiser(ops, state, {"w": Param((1000,), "he")}, hyper, 1)
    for _ in range(20):
        rule.average()
    np.testing.assert_array_equal(host(state.ema["w"]), w)


def test_norms_are_asked_for_where_they_are_needed():
    for how in ({"clip": 1.0}, {"optimiser": "lars"}, {"optimiser": "lamb"}):
        with pytest.raises(ValueError, match="norms"):
            Optimiser(None, State(), {}, Hyper(0.1, **how), 1)


def test_a_norm_takes_one_sum_of_the_ranks(ops):
    counts = {"sgd": 0, "adamw": 0, "lars": 1, "lamb": 1}
    for optimiser, expected in counts.items():
        for clip in (0.0, 1.0):
            sums: list[Any] = []
            state = State(draw(1))
            for section in kept_by(optimiser, 0.0):
                vars(state)[section] = {name: 0 * w for name, w in draw(1).items()}
            norms = Norms(tuple(SPECS), frozenset(SPECS))
            hyper = Hyper(0.1, optimiser=optimiser, clip=clip)
            rule = Optimiser(ops, state.on(ops), SPECS, hyper, 1, norms=norms)
            grads = {name: ops.upload(g) for name, g in draw(2).items()}
            rule.apply(grads, 0, lambda values, sums=sums: sums.append(values) or values)
            # the direction of LAMB is not known before gradients are clipped
            assert len(sums) == (2 if clip and optimiser == "lamb" else max(expected, bool(clip)))
