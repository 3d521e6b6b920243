"""The timeline of a step: what it must be where that is known, and what holds for every plan."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import ceil, log2, prod

import numpy as np
import pytest
from random_cases import SMALL, draw, refusal

from mpicnn.division.compile import compile_all
from mpicnn.division.move import Hop, Move
from mpicnn.division.placement import Partial, Replicated, Split
from mpicnn.division.plan import Plan
from mpicnn.division.presets import preset
from mpicnn.forecast.cost import Counter, step_costs
from mpicnn.forecast.durations import UPDATE_PASSES
from mpicnn.forecast.machine import Device, Link, Machine
from mpicnn.forecast.timeline import timeline
from mpicnn.forecast.traffic import Exchange, Traffic, carried
from mpicnn.layers import Conv, Flatten, Linear, ReLU
from mpicnn.models import Model

PLAIN = Model(
    "plain",
    (2, 6, 6),
    (("conv1", Conv(8, 3)), ("relu1", ReLU()), ("flatten", Flatten()), ("fc", Linear(10))),
)
FAST = Device(convolution=1e9, linear=1e9)


def cluster(rng, ranks):
    """Return a random machine: unlike devices, some on one host."""
    devices = tuple(
        Device(*(10 ** rng.uniform(8, 10, 2)), 10 ** rng.uniform(8, 10), 10 ** rng.uniform(-6, -4))
        for _ in range(ranks)
    )
    hosts = tuple(int(h) for h in rng.integers(0, ranks, ranks))
    inside = Link(10 ** rng.uniform(-7, -5), 10 ** rng.uniform(8, 10), rng.uniform())
    between = Link(10 ** rng.uniform(-6, -3), 10 ** rng.uniform(6, 9), rng.uniform())
    return Machine(devices, hosts, inside, between)


@lru_cache
def plans():
    """Return the programs of random plans that fit their networks, with a random machine each."""
    found = []
    for seed in range(60):
        case = draw(seed, graph=seed % 2 == 1)
        if not refusal(case):
            programs = compile_all(case.model, case.plan, case.batches[0], SMALL)
            found.append((seed, programs, cluster(np.random.default_rng(seed), case.plan.ranks)))
    assert len(found) > 20
    return found


def test_one_rank_takes_as_long_as_its_work():
    device = Device(convolution=3e9, linear=2e9, memory=5e9)
    programs = compile_all(PLAIN, preset("data", PLAIN, (1,)), 4)
    costs = {cost.name: cost for cost in step_costs(programs[0], 4)}
    rates = {"conv1": 3e9, "fc": 2e9}
    expected = sum(
        cost.work.flops[0] / rates.get(name, 1) + cost.work.bytes_touched[0] / 5e9
        for name, cost in costs.items()
    )
    expected += UPDATE_PASSES * sum(cost.held[0] for cost in costs.values()) * 4 / 5e9
    found = timeline(programs, Machine((device,), (0,), Link(), Link()), 4)
    assert found.seconds == pytest.approx(expected)
    assert not found.by_category()["communication"].any()
    assert found.by_category()["convolution"][0] == pytest.approx(
        costs["conv1"].work.flops[0] / 3e9 + costs["conv1"].work.bytes_touched[0] / 5e9
    )


def test_a_slow_rank_keeps_the_others_waiting():
    devices = (FAST, replace(FAST, convolution=0.5e9, linear=0.5e9))
    programs = compile_all(PLAIN, preset("data", PLAIN, (2,)), 4)
    found = timeline(programs, Machine(devices, (0, 1), Link(), Link()), 4)
    busy = found.by_category()
    computed = busy["convolution"] + busy["other"]
    assert computed[1] == pytest.approx(2 * computed[0])
    assert found.seconds == pytest.approx(computed[1])
    assert busy["communication"] == pytest.approx([computed[0], 0])


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_pipeline_fills_and_empties(order, parts):
    """Of S equal stages and m micro-batches, S - 1 turns are lost (Huang et al. 2019, GPipe)."""
    layers = [(f"conv{i}", Conv(2, 3, padding=1)) for i in range(3)]
    model = Model("even", (2, 5, 5), (*layers, ("flatten", Flatten())))
    plan = Plan((1,), ((1.0,),), {}, stages=("conv1", "conv2"), micro_batches=parts, order=order)
    programs = compile_all(model, plan, 10)
    found = timeline(programs, Machine((FAST,) * 3, (0, 1, 2), Link(), Link()), 4)
    forward = 10 / parts * 25 * 2 * 2 * 2 * 9 / 1e9
    # the images have no gradient: the first stage goes back in half the time
    turn = np.array([2, 3, 3]) * forward
    assert found.by_category()["convolution"] == pytest.approx(parts * turn)
    assert found.seconds == pytest.approx((2 + 3 * parts + 3) * forward)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_collectives_take_what_their_algorithms_take(ranks):
    whole, link = (ranks * 6, 2), Link(latency=1e-3, bandwidth=1e6)
    split = Split(0, tuple(6 * r for r in range(ranks + 1)))
    alone = Split(0, (0, *[6 * ranks] * ranks))
    counter = Counter(*compile_all(PLAIN, preset("data", PLAIN, (ranks,)), ranks), itemsize=4)
    machine = Machine((FAST,) * ranks, tuple(range(ranks)), Link(), link)
    size, steps = prod(whole) * 4, ceil(log2(ranks))
    part = size * (ranks - 1) / ranks
    for move, volume, trips in (
        (Move(Partial(), Replicated()), 2 * part, 2 * steps),
        (Move(split, Replicated()), part, steps),
        (Move(Partial(), split), part, steps),
        (Move(alone, split), part, steps),
        (Move(alone, Replicated()), part * (2 if ranks > 2 else 1), steps * (1 + (ranks > 2))),
        (Move(Partial(), alone), part * (2 if ranks > 2 else 1), steps * (1 + (ranks > 2))),
    ):
        what = carried(counter, Hop(0, move, whole, (Replicated(),)))
        begun = np.arange(ranks) / 7
        done = Traffic(machine).collective(np.arange(ranks), begun, what)
        expected = begun[-1] + trips * 1e-3 + volume / 1e6
        np.testing.assert_allclose(done.at, expected, err_msg=str(move))


def test_a_link_carries_one_message_at_a_time():
    hosts, link = np.array([0, 0, 1, 1]), Link(bandwidth=1e6)
    traffic = Traffic(Machine((FAST,) * 4, tuple(hosts), Link(bandwidth=1e9), link))
    ring = Exchange((0,), 1000.0, 2)
    assert traffic.collective(hosts, np.zeros(4), ring).at == pytest.approx(1e-3)
    assert traffic.collective(hosts, np.zeros(4), ring).at == pytest.approx(2e-3)
    # two thirds of what each of two ranks sends to all others leaves the host
    paired = Exchange((0,), 1500.0, 2, paired=True)
    assert traffic.collective(hosts, np.zeros(4), paired).at == pytest.approx(4e-3)
    # columns of a grid cross at the same time; rows stay on their hosts
    grid, begun = hosts.reshape(2, 2), np.zeros((2, 2))
    crossing = traffic.collective(grid, begun, Exchange((0,), 1000.0, 1))
    assert crossing.at == pytest.approx(6e-3)
    assert traffic.collective(grid, begun, Exchange((1,), 1000.0, 1)).at == pytest.approx(1e-6)


def test_clocks_never_stand_still_or_go_back():
    for seed, programs, machine in plans():
        found = timeline(programs, machine, 8)
        for stage in range(len(programs)):
            rows = [each for each in found.intervals if each.stage == stage]
            assert not rows[0].begin.any()
            for before, after in zip(rows, rows[1:], strict=False):
                assert (before.end == after.begin).all(), f"seed {seed}"
                assert (after.end >= after.begin).all(), f"seed {seed}: {after.name}"
            assert rows[-1].end == pytest.approx(found.seconds)
        total = sum(found.by_category().values())
        assert total == pytest.approx(np.full(len(machine.devices), found.seconds)), f"seed {seed}"


def test_no_step_is_shorter_than_its_busiest_rank():
    for seed, programs, machine in plans():
        found = timeline(programs, machine, 8)
        flops = np.concatenate(
            [sum(c.work.flops for c in step_costs(program, 8)) for program in programs]
        )
        fastest = np.maximum(machine.rates.convolution, machine.rates.linear)
        assert found.seconds >= (flops / fastest).max(), f"seed {seed}"


def test_nothing_gets_shorter_on_a_slower_machine():
    for seed, programs, machine in plans():
        before = timeline(programs, machine, 8).seconds
        half = replace(machine.between, bandwidth=machine.between.bandwidth / 2)
        late = replace(machine.inside, latency=machine.inside.latency * 3)
        slow = tuple(replace(d, convolution=d.convolution / 2) for d in machine.devices)
        for worse in (
            replace(machine, between=half),
            replace(machine, inside=late),
            replace(machine, devices=slow),
        ):
            assert timeline(programs, worse, 8).seconds >= before * (1 - 1e-12), f"seed {seed}"


def test_a_machine_has_as_many_ranks_as_the_programs():
    programs = compile_all(PLAIN, preset("data", PLAIN, (2,)), 4)
    with pytest.raises(ValueError, match="2 ranks on a machine of 1"):
        timeline(programs, Machine((FAST,), (0,), Link(), Link()), 4)
