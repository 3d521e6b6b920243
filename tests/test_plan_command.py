"""mpicnn plan on machines that are known: seconds, rankings, and what cannot be answered."""

from __future__ import annotations

import re
from pathlib import Path

import mpi_jobs
import pytest
from test_calibrate import HERE, MEASURED
from test_train import error_of

from mpicnn import models
from mpicnn.commands.plan import machine_of
from mpicnn.devices.calibration import digest
from mpicnn.errors import UserError
from mpicnn.settings.command_settings import PlanSettings

CLUSTER = """
[[node]]
name = "fast"
count = 2
ranks = 2
convolution_gflops = 30
memory_gb_per_s = 10

[[node]]
name = "slow"
count = 1
convolution_gflops = 10
memory_gb_per_s = 5

[link]
latency_us = 50
gbit_per_s = 1
"""
MODEL = models.load("default", (1, 28, 28), 10)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text(CLUSTER)
    return path


def plan(*options):
    return mpi_jobs.run(0, "-m", "mpicnn.plan", *options)


def test_a_plan_has_seconds_where_the_machine_is_known(cluster) -> None:
    job = plan("--machine", cluster, "--nodes", 2, "--plan", "owt")
    assert job.code == 0, job.err
    assert re.search(r"^layer +split .* MB sent +ms$", job.out, re.M)
    assert re.search(r"^rank +.* communication ms", job.out, re.M)
    found = re.search(r"^one step: ([\d.]+) ms, [\d.]+ images/s$", job.out, re.M)
    assert found and 1 < float(found[1]) < 1000
    assert " ms" not in plan("--ranks", 3, "--plan", "owt").out


def test_all_plans_are_compared_and_the_best_is_shown(cluster) -> None:
    job = plan("--machine", cluster, "--nodes", 2, "--compare", "--plan", "auto")
    assert job.code == 0, job.err
    head, line, *rows = job.out.splitlines()
    assert head.split()[:3] == ["plan", "ms", "images/s"] and set(line) == {"-"}
    times = [float(row.split()[-6]) for row in rows[: rows.index("")]]
    assert len(times) > 4 and times == sorted(times)
    assert any(row.startswith("data") for row in rows)
    assert re.search(r"^(No plan|\d+ of \d+ combinations)", job.out, re.M)
    assert "default under plan" in job.out and "one step: " in job.out
    alone = plan("--machine", cluster, "--nodes", 2, "--compare")
    assert "default under plan" not in alone.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--machine", "{cluster}", "--ranks", 4), "lab: no number of its nodes has 4 ranks"),
        (("--machine", "{cluster}", "--nodes", 3, "--ranks", 2), "ranks 2: .* has 5 ranks there"),
        (("--nodes", 2), "nodes: needs machine, a cluster's file"),
        (("--machine", "{cluster}", "--shares", "measured"), "its speeds are known, none are meas"),
        (("--plan", "auto", "--ranks", 8), "ranks 8: 1 run; start as many as are to be measured"),
        (("--machine", "nowhere.json"), "machine nowhere.json: cannot be read: No such file"),
        (
            ("--machine", "{cluster}", "--nodes", 1, "--compare", "--memory", "1KB"),
            "memory 1e-06 GB: no plan that was found fits; the least that one needs is",
        ),
    ],
)
def test_what_cannot_be_answered_is_one_line(options, message, cluster) -> None:
    job = plan(*(str(each).format(cluster=cluster) for each in options))
    assert re.search(message, error_of(job)), job.err


def test_a_calibration_is_a_machine_for_its_own_network(tmp_path) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(MEASURED.to_json())
    settings = PlanSettings(machine=str(path))
    with pytest.raises(UserError, match="digest of its layers: 12ab when .* now; measure"):
        machine_of(settings, MODEL, 0)
    path.write_text(MEASURED.to_json().replace('"12ab"', f'"{digest(MODEL)}"'))
    assert len(machine_of(settings, MODEL, 0).devices) == len(HERE.ranks)
    with pytest.raises(UserError, match="precision: float32 when measured, float64 now"):
        machine_of(PlanSettings(machine=str(path), precision="float64"), MODEL, 0)
    with pytest.raises(UserError, match="ranks 5: .* has 2 ranks there"):
        machine_of(settings, MODEL, 5)
