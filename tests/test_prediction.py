"""Dry steps on stand-ins for a mesh, measured links, and what a run says of its forecast."""

from __future__ import annotations

import re
import tomllib
from math import isfinite

import mpi_jobs
import numpy as np
import pytest
from oracle import run_ranks
from plan_cases import bytes_sent
from random_cases import CLASSES, OPS, SEED, SMALL, draw, refusal

from mpicnn.checkpoint import read_tensors
from mpicnn.comm.dry import DryMesh
from mpicnn.comm.mesh import Mesh
from mpicnn.devices.links import measure_links
from mpicnn.division.compile import compile
from mpicnn.step.dry import dry_step
from mpicnn.step.interpreter import Batch, Tools
from mpicnn.step.optimiser import Hyper, Optimiser
from mpicnn.step.state import initial_state
from mpicnn.step.timing import StepTimer


def dry(comm, case):
    """Return whether a rank's dry step gives numbers, and the bytes it sent and should have."""
    mesh = Mesh(comm, case.plan.grid, case.plan.depth)
    stand_in = DryMesh(mesh)
    whole = compile(case.model, case.plan, case.batches[0], mesh.stage, SMALL)
    program = whole.at(mesh.coords)
    state = initial_state(program.weights, mesh.coords, SEED, np.float64)
    specs = {w.name: w.param for w in program.weights if w.learns}
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((program.positions.size, *case.model.input_shape))
    batch = Batch(x, rng.integers(CLASSES, size=case.batches[0]), train=True)
    tools = Tools(stand_in, OPS, StepTimer(OPS.Timer()), SEED)
    took = dry_step(tools, program, Optimiser(OPS, state, specs, Hyper(0.01), 1), batch)
    assert took.shape == (len(program.ops) + 1,)
    finite = all(np.isfinite(array).all() for array in state.params.values())
    return finite, mesh.sent, stand_in.sent, bytes_sent(whole, mesh.coords, 8)


def test_any_plan_can_be_gone_through_without_messages():
    done = 0
    for seed in range(40):
        case = draw(seed, graph=seed % 2 == 1)
        if refusal(case):
            continue
        done += 1
        found = run_ranks(case.plan.ranks, lambda comm, c=case: dry(comm, c))
        for finite, sent, counted, predicted in found:
            assert finite and not sent, f"seed {seed}"
            assert counted == pytest.approx(predicted), f"seed {seed}"
    assert done > 12


@pytest.mark.mpi
def test_links_are_what_sums_take(comm):
    mesh = Mesh(comm)
    hosts = [rank // 2 for rank in range(mesh.world.size)]
    for numbers in ([0] * mesh.world.size, hosts):
        inside, between = measure_links(mesh, numbers)
        if mesh.world.size > 1:
            assert 0 < inside.latency < 1 and 0 < between.latency < 1
            assert isfinite(inside.bandwidth) and isfinite(between.bandwidth)


@pytest.mark.limit(60)
def test_a_forecast_changes_nothing_and_stands_beside_what_was_measured(tmp_path):
    common = (
        "-m", "mpicnn.train", "--epochs", 0.05, "--batch", 64, "--threads", 1, "--progress",
        "off", "--evaluate-every", 0, "--optimiser", "lamb",
    )  # fmt: skip
    weights, outputs = [], []
    for more in ((), ("--forecast",)):
        run = tmp_path / f"run{len(more)}"
        job = mpi_jobs.run(2, *common, *more, "--run-dir", run, seconds=50)
        assert job.code == 0, job.err
        outputs.append(job.out)
        weights.append(read_tensors(max((run / "checkpoints").iterdir())))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name], err_msg=name)
    plain, told = outputs
    assert "ms expected" not in plain and "  forecast" not in plain
    (expected,) = re.findall(r"^  step +([\d.]+) ms expected: communication", told, re.M)
    total = re.search(r"^total .* ([\d.]+)$", told, re.M)
    assert total and abs(float(total[1]) - float(expected)) < 0.02
    assert tomllib.loads((tmp_path / "run1" / "config.toml").read_text())["forecast"]
