"""The search of plans: it knows every plan of its family, its costs are those of the programs that
compile, and no plan is quicker than its bound."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from math import prod

import numpy as np
import pytest
from random_cases import draw_graph, draw_model
from test_timeline import cluster

from mpicnn.division.checks import groups_of
from mpicnn.division.compile import Options, compile_all
from mpicnn.division.operations import Backward, Forward, Start, Sum
from mpicnn.division.plan import INPUT, LOSS, LayerPlan, Plan
from mpicnn.division.propagation import propagate
from mpicnn.division.strategy import INPUT_KIND, LOSS_KIND, letters, row
from mpicnn.errors import UserError
from mpicnn.forecast.durations import Rated
from mpicnn.forecast.timeline import timeline
from mpicnn.forecast.traffic import Traffic, batch_sums, carried, summed
from mpicnn.layers import Conv, Flatten, Linear, ReLU
from mpicnn.models import Model
from mpicnn.search.bound import Courses, bound
from mpicnn.search.frames import alone, frames
from mpicnn.search.prices import Prices
from mpicnn.search.states import States
from mpicnn.search.trellis import build

ALONE = Options(bucket=1)
"""Every gradient in a message of its own."""
MOST = 60
"""Plans of a frame that are compiled at most."""
MOST_TRIED = 3000
"""Combinations of letters that are tried at most, to find all plans of a frame."""
CASES, IN_GROUPS = 14, 2
"""Frames that are looked at, and how many of them have networks with layers in groups."""


def in_groups(rng):
    """Return a network with layers in groups, convolutions or fully connected ones."""
    groups = int(rng.choice([2, 3, 4]))
    if rng.random() < 0.5:
        last = Conv(groups * int(rng.integers(1, 3)), 2, groups=groups)
        body = (("conv1", Conv(2 * groups, 2)), ("relu1", ReLU()), ("conv2", last))
        head = (("fc3", Linear(5)),)
    else:
        body = (("conv1", Conv(groups, 1)),)
        head = (("fc2", Linear(2 * groups, groups=groups)), ("relu2", ReLU()), ("fc3", Linear(5)))
    return Model("groups", (2, 3, 2), (*body, ("flat", Flatten()), *head))


@lru_cache
def cases():
    """Return small networks with frames, machines and the trellis of each frame."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        normalised = bool(rng.random() < 0.4)
        if len(found) >= CASES - IN_GROUPS:
            model = in_groups(rng)
        else:
            model = draw_graph(rng, normalised, most=5) if seed % 2 else draw_model(rng, normalised)
        contractions = sum(layer.kind == "contraction" for _, layer in model.layers)
        if contractions > 3 or len(model.layers) > 9:
            continue
        ranks, batch = int(rng.integers(2, 5)), int(rng.integers(6, 12))
        machine = cluster(rng, ranks)
        speed = 1 / alone(model, batch, machine, 8).sum(axis=0)
        able = list(frames(model, batch, speed))
        for at in rng.choice(len(able), min(2, len(able)), replace=False):
            states = States(Prices(model, able[at], batch, machine, 8))
            trellis = build(states)
            if trellis is not None:
                found.append((seed, model, batch, machine, speed, trellis))
        if len(found) >= CASES:
            break
    return found


def every_plan(model, frame):
    """Yield all plans of a small frame, and none of a large one.

    Contractions have every letter; other layers follow or are named, their channels only where a
    sum is pending.
    """
    kinds = {INPUT: INPUT_KIND} | {n: layer.kind for n, layer in model.layers} | {LOSS: LOSS_KIND}
    groups = {name: groups_of(layer) for name, layer in model.layers}
    outer, owner = "n" * (len(frame.grid) - 1), frame.owner
    choices = []
    for name, kind in kinds.items():
        first = kind in ("contraction", INPUT_KIND)
        owned = f"m@{owner}" if owner else "m"
        able = [owned if a == "m" else a for a in letters(kind) if a != "m" or first]
        if groups.get(name, 1) == 1:  # what is refused anyway need not be tried
            able = [a for a in able if not row(kind, a).grouped]
        choices.append([outer + a for a in able] + ([] if first else [""]))
    if prod(map(len, choices)) > MOST_TRIED:
        return
    base = frame.plan
    for splits in product(*choices):
        layers = {n: LayerPlan(s) for n, s in zip(kinds, splits, strict=True) if s}
        plan = Plan(base.grid, base.shares, layers, base.scheme, base.sync)
        try:
            divisions = propagate(model, plan)
        except UserError:
            continue
        if _in_family(model, plan, kinds, divisions):
            yield plan


def _in_family(model, plan, kinds, divisions):
    names = list(kinds)
    for at, (name, kind) in enumerate(kinds.items()):
        if name == INPUT or kind == "contraction" or name not in plan.layers:
            continue
        source = at - 1 if name == LOSS else model.sources[at - 1][0]
        before, here = divisions[names[source]], divisions[name]
        if here.rows[-1].letter == "c" and not before.rows[-1].total:
            return False
        rest = {n: each for n, each in plan.layers.items() if n != name}
        following = propagate(model, Plan(plan.grid, plan.shares, rest))[name]
        if following.rows == here.rows:
            return False
        joins = name != LOSS and dict(model.layers)[name].joins
        if following.follows and not joins and not any(each.total for each in before.rows):
            return False  # what reads it may as well be divided anew
    return True


def additive(programs, machine, model):
    """Return the seconds of a step in which nothing overlaps and all wait for the slowest, but for
    what every plan has."""
    (program,) = programs
    hosts = np.array(machine.hosts).reshape(program.grid)
    rated = Rated(program, machine.rates.on(program.grid), 8)

    def travels(what):
        return Traffic(machine).collective(hosts, np.zeros(program.grid), what).at

    total = 0.0
    for op in program.ops:
        if isinstance(op, Forward | Backward):
            total += rated.operation(op).max()
            way = int(isinstance(op, Backward))
            if not way or op.call.need_dx:
                what, taking_part = batch_sums(rated.counter, op.call, way)
                total += (travels(what) * taking_part).max() if taking_part.any() else 0
        elif isinstance(op, Start) and not op.hop.move.local:
            total += travels(carried(rated.counter, op.hop)).max()
        elif isinstance(op, Sum):
            total += travels(summed(rated.counter, op.names, op.axes)).max()
    for name, _ in model.layers:
        own = [w.name for w in program.weights if w.layer == name and w.learns]
        total += (rated.update(own) - rated.rates.start).max() if own else 0
    return total


@pytest.mark.parametrize("at", range(CASES))
def test_the_trellis_is_all_plans_at_their_costs(at):
    seed, model, batch, machine, speed, trellis = cases()[at]
    frame = trellis.states.frame
    paths = trellis.several([trellis.additive] * len(trellis.strata), 1000)
    costs = {}
    for at, path in enumerate(paths):
        plan = trellis.plan(path)
        costs[tuple(sorted((n, p.split) for n, p in plan.layers.items()))] = path.cost
        if at % max(1, len(paths) // MOST):
            continue
        programs = compile_all(model, plan, batch, ALONE)
        expected = additive(programs, machine, model)
        assert path.cost == pytest.approx(expected, rel=1e-9), f"{seed}: {plan}"
    assert len(costs) == len(paths)
    able = set()
    for plan in every_plan(model, frame):
        try:
            compile_all(model, plan, batch)
        except UserError:
            continue
        able.add(tuple(sorted((n, p.split) for n, p in plan.layers.items())))
    assert not able or able == set(costs), f"{seed}"


@pytest.mark.parametrize("at", range(CASES))
def test_no_plan_is_shorter_than_a_course_or_the_bound(at):
    seed, model, batch, machine, speed, trellis = cases()[at]
    courses = Courses(trellis)
    least = np.inf
    for path in trellis.several([trellis.additive] * len(trellis.strata), MOST):
        for options in (ALONE, Options()):
            programs = compile_all(model, trellis.plan(path), batch, options)
            seconds = timeline(programs, machine, 8).seconds
            longest = courses.lengths(path).max(axis=2).sum(axis=1) + courses.constant().min(axis=1)
            assert longest.max() <= seconds * (1 + 1e-9), (
                f"{seed}: course {longest.argmax()} of {trellis.plan(path)}"
            )
            least = min(least, seconds)
    found = bound(trellis, speed)
    assert 0 < found.seconds <= least * (1 + 1e-9)
