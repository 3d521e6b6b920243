"""What a search returns: the best of all plans on small networks, within memory, and its report."""

import json
import re
from dataclasses import replace

import mpi_jobs
import numpy as np
import pytest
from test_search import CASES, cases, every_plan
from test_timeline import cluster
from test_train import TRAIN, error_of

from mpicnn import models
from mpicnn.division.compile import Options, compile_all
from mpicnn.division.plan import equal_shares
from mpicnn.division.presets import preset
from mpicnn.errors import UserError
from mpicnn.forecast.machine import Device, Link, Machine
from mpicnn.forecast.timeline import timeline
from mpicnn.search.report import certificate, ranking, summary, why
from mpicnn.search.search import Search, Task, search

SMALL = models.load("default", (1, 28, 28), 10)
SLOW = Link(1e-4, 1e7, 0.1)


def unlike(*speeds, between=SLOW):
    """Return a machine of a rank on each host, which computes at so many GFLOP/s."""
    devices = tuple(Device(1e9 * s, 1e9 * s, 1e9 * s, 1e-5) for s in speeds)
    return Machine(devices, tuple(range(len(speeds))), Link(1e-6, 1e10), between)


@pytest.mark.parametrize("at", range(CASES))
def test_the_best_plan_of_a_frame_is_found(at):
    seed, model, batch, machine, _, trellis = cases()[at]
    task = Task(model, batch, machine, 8)
    brute = Search(task)
    for plan in every_plan(model, trellis.states.frame):
        brute.time(plan)
    if not brute.found:
        return
    run = Search(task)
    run.frame(trellis.states.frame)
    best = next(brute.ranked()).seconds
    # the few plans that are timed are the cheapest of all, but for how they overlap
    assert best * (1 - 1e-9) <= next(run.ranked()).seconds <= 1.02 * best, seed
    assert run.bounds[0] <= best * (1 + 1e-9)


def test_no_preset_is_faster_and_no_plan_is_below_the_bounds():
    rng = np.random.default_rng(5)
    for ranks in (1, 3):
        machine = cluster(rng, ranks)
        found = search(Task(SMALL, 32, machine, 4), seconds=60)
        seconds = [each.seconds for each in found.candidates]
        assert seconds == sorted(seconds)
        assert found.floor <= found.bound <= seconds[0]
        assert found.complete
        for name in ("data", "owt", "filter"):
            plan = on_all(name, ranks)
            took = timeline(compile_all(SMALL, plan, 32, Options()), machine, 4).seconds
            assert seconds[0] <= took * (1 + 1e-9)


def on_all(name, ranks):
    return preset(name, SMALL, (ranks,), equal_shares((ranks,)))


def test_unlike_ranks_get_shares_and_slow_links_few_bytes():
    found = search(Task(SMALL, 64, unlike(1, 3), 4), seconds=60)
    assert found.best.plan.shares[-1] != (1.0, 1.0)
    data = timeline(compile_all(SMALL, on_all("data", 2), 64), unlike(1, 3), 4)
    assert found.best.seconds < 0.8 * data.seconds


def test_a_rank_that_slows_all_others_down_is_left_out():
    # 10 kB/s: any message costs more than the whole step of the fast rank
    found = search(Task(SMALL, 16, unlike(5, 5, between=Link(1e-3, 1e4)), 4), seconds=60)
    alone = timeline(compile_all(SMALL, on_all("data", 1), 16), unlike(5), 4)
    assert found.best.seconds < 1.6 * alone.seconds


def test_memory_is_kept_to_and_the_least_is_told():
    machine = unlike(1, 1)
    free = search(Task(SMALL, 64, machine, 4), seconds=60)
    tight = replace(Task(SMALL, 64, machine, 4), memory=np.full(2, 0.999 * float(free.bytes.max())))
    found = search(tight, seconds=60)
    assert (found.bytes <= tight.memory).all()
    assert found.best.plan != free.best.plan
    with pytest.raises(UserError, match=r"memory 0.0001 GB: no plan .* least .* GB on rank \d"):
        search(replace(tight, memory=np.full(2, 1e5)), seconds=60)


def test_a_search_cut_short_says_so():
    task = Task(SMALL, 32, unlike(1, 2, 3, 4), 4)
    found = search(task, seconds=1e-9)
    assert not found.complete and found.looked == 1
    assert certificate(found).startswith(f"1 of {found.frames} combinations of grid, shares")
    assert found.gap == pytest.approx(found.best.seconds / found.floor - 1)


def test_the_report_has_each_preset_once_and_a_reason():
    task = Task(SMALL, 64, unlike(1, 3), 4)
    found = search(task, seconds=60)
    rows = ranking(found, task)
    names = [row.split()[0].strip(",") for row in rows[2:]]
    assert {"data", "owt", "filter", "master-worker", "fc-input"} <= set(names)
    assert names.count("data") == 1
    assert "instead of" in why(found) or "no faster" in why(found)
    assert " a step forecast" in summary(found) and "combination" in summary(found)


def train(ranks, *options):
    return mpi_jobs.run(ranks, *TRAIN, "--threads", 1, *options, seconds=80)


@pytest.mark.limit(90)
def test_training_under_the_plan_that_is_found_is_that_of_one_rank(tmp_path):
    options = ("--epochs", 0.1, "--precision", "float64", "--seed", 3, "--log-every", 1)
    one = train(1, "--run-dir", tmp_path / "one", *options)
    file = tmp_path / "speeds.json"
    auto = train(
        3, "--run-dir", tmp_path / "auto", "--plan", "auto", "--verify", 2, "--calibration", file,
        *options,
    )  # fmt: skip
    assert one.code == auto.code == 0, auto.err
    assert "  auto   " in auto.out and " a step forecast" in auto.out
    assert re.search(r"; 2 plans tried: [\d.]+ ms, number [12] of the forecast$", auto.out, re.M)
    losses = [
        [line.split("loss ")[1].split()[0] for line in job.out.splitlines() if " loss " in line]
        for job in (one, auto)
    ]
    assert losses[0] == losses[1] and len(losses[0]) > 5
    assert json.loads(file.read_text())["format"] == 3
    assert (tmp_path / "auto" / "plan.toml").read_text().count("shares") >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shares", "1,2"), "shares 1,2: plan auto chooses it; leave shares out, or name a plan"),
        (("--grid", "1x2"), "grid 1x2: plan auto chooses it"),
        (("--micro-batches", 2), "micro-batches 2: plan auto chooses it"),
        (("--scheme", "b"), "scheme b: plan auto chooses it"),
        (("--fc-update", "round"), "fc-update round: what is learnt depends on the plan; name one"),
        (("--memory", "4"), "memory '4': expected a number above 0 with its unit, like 4GB"),
        (("--memory", "100KB"), r"memory 0.0001 GB: no plan that was found fits; the least"),
        (("--search-time", 0), "search-time"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(tmp_path, options, message):
    job = train(1, "--run-dir", tmp_path / "a", "--plan", "auto", *options)
    assert job.code == 2
    assert re.search(message, error_of(job))
    assert not (tmp_path / "a").exists()
