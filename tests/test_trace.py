"""The timeline that --trace writes."""

import json

import mpi_jobs
import numpy as np
import pytest
from oracle import run_ranks

from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.layers import BatchNorm, Conv, Flatten, Linear
from mpicnn.models import Model
from mpicnn.ops import load
from mpicnn.step.executor import Executor
from mpicnn.step.state import initial_state
from mpicnn.step.trace import COUNT, Trace, merged


def test_ranks_events_become_one_file():
    traces = [Trace(), Trace()]
    for trace in traces:
        trace.add("conv1", "convolution", trace.origin + 1.0, trace.origin + 1.5)
        trace.add("fc2", "communication", trace.origin + 1.25, trace.origin + 2.0, lane=2)
    events = json.loads(merged([trace.text() for trace in traces]))["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["pid"], e["tid"]) for e in complete] == [
        ("conv1", 0, 1), ("fc2", 0, 2), ("conv1", 1, 1), ("fc2", 1, 2),
    ]  # fmt: skip
    assert complete[0]["ts"] == pytest.approx(1e6) and complete[0]["dur"] == pytest.approx(5e5)


def in_order(events):
    """Say whether events follow one another, give or take the rounding of their times."""
    ordered = sorted(events, key=lambda e: e["ts"])
    return all(
        a["ts"] + a["dur"] <= b["ts"] + 0.5 for a, b in zip(ordered, ordered[1:], strict=False)
    )


def test_sums_over_a_batch_interrupt_their_layer():
    layers = (("conv", Conv(2, 3)), ("bn", BatchNorm()), ("flatten", Flatten()), ("fc", Linear(3)))
    model = Model("normalised", (1, 5, 5), layers)
    plan = preset("data", model, (2,))

    def events(comm):
        mesh, ops = Mesh(comm, plan.grid), load("numpy")
        program = compile(model, plan, 6).at(mesh.coords)
        state = initial_state(program.weights, mesh.coords, 0, np.float64)
        executor = Executor(mesh, ops, 0)
        executor.timer.trace = Trace()
        images = np.random.default_rng(0).standard_normal((6, *model.input_shape))
        executor.train(program, state, images[program.positions], np.arange(6) % 3, 0)
        spent = executor.timer.by_category
        return executor.timer.trace.events, spent

    for found, spent in run_ranks(2, events):
        doing = [e for e in found if e["tid"] == 1]
        assert in_order(doing)
        # forward, once for mean and squares together, and backward
        assert [e["cat"] for e in doing if e["name"] == "bn"].count("communication") == 2
        assert sum(e["dur"] for e in doing) == pytest.approx(1e6 * sum(spent.values()), rel=0.05)


@pytest.mark.limit(60)
def test_a_traced_run_shows_what_travels_beside_what_computes(tmp_path):
    file = tmp_path / "trace.json"
    job = mpi_jobs.run(
        2, "-m", "mpicnn.train", "--plan", "owt", "--scheme", "c", "--batch", 16, "--epochs", 0.03,
        "--threads", 1, "--progress-thread", "on", "--run-dir", tmp_path / "run",
        "--trace", file, seconds=50,
    )  # fmt: skip
    assert job.code == 0, job.err
    events = json.loads(file.read_text())["traceEvents"]
    for rank in range(2):
        mine = [e for e in events if e["ph"] == "X" and e["pid"] == rank]
        assert sum(e["name"] == "update" for e in mine) == COUNT
        lanes = {lane: [e for e in mine if e["tid"] == lane] for lane in (1, 2)}
        assert in_order(lanes[1])
        computing = [e for e in lanes[1] if e["cat"] != "communication"]
        overlaps = [
            (t["name"], c["name"])
            for t in lanes[2]
            for c in computing
            if t["ts"] < c["ts"] + c["dur"] and c["ts"] < t["ts"] + t["dur"]
        ]
        assert any(travelling == "fc3" for travelling, _ in overlaps)
