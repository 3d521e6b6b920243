"""bench/predict.py draws cases that plans allow, and puts what they took beside the forecast."""

import csv
import importlib
import random
from pathlib import Path

import mpi_jobs
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("predict")


def test_cases_are_the_same_on_all_ranks(script):
    drawn = [list(script.cases(random.Random(3), ["lenet5"], 3, 8)) for _ in range(2)]
    assert [case.plan for case in drawn[0]] == [case.plan for case in drawn[1]]
    assert len({case.name for case in drawn[0]}) > 3
    assert all(case.plan.ranks == 3 for case in drawn[0])


def test_pairs_count_where_they_differ(script):
    def row(network, step, forecast):
        return {"network": network, "batch": 8, "step_ms": step, "forecast_ms": forecast}

    rows = [row("a", 10, 9), row("a", 10.5, 1), row("a", 20, 8), row("b", 100, 1)]
    # 10 and 10.5 are alike, b is another network; of the others, 20 was forecast below 10
    assert script.ordered(rows) == (1, 2)


@pytest.mark.limit(60)
def test_forecasts_and_steps_are_compared(tmp_path):
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        2, BENCH / "predict.py", "--models", "lenet5", "--cases", 2, "--repeats", 1, "--turn",
        0.05, "--out", out, seconds=50,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 2 and all(row["network"] == "lenet5" for row in rows)
    for row in rows:
        ratio = float(row["forecast_ms"]) / float(row["step_ms"])
        assert float(row["error"]) == pytest.approx(ratio - 1)
        assert float(row["noise"]) == 0 < float(row["step_ms"])
    assert "2 cases: error median " in job.out
