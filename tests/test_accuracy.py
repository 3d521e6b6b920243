"""bench/accuracy.py does the runs that are missing and says what came out."""

import csv
import importlib
from pathlib import Path

import mpi_jobs
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("accuracy")


def row(step, split, loss, top1=0.5):
    return f"{step},{step / 10},1.0,{split},{loss},{top1},0.9,100.0,0.01\n"


def leave(run, losses, top1, epochs=0.2):
    """Leave what a finished run does, of ten steps an epoch."""
    run.directory.mkdir(parents=True)
    run.directory.joinpath("config.toml").write_text(f"batch = 12\nepochs = {epochs}\n")
    header = "step,epoch,seconds,split,loss,top1,top5,images_per_second,rate\n"
    steps = "".join(row(n + 1, "train", loss) for n, loss in enumerate(losses))
    run.directory.joinpath("metrics.csv").write_text(
        header + steps + row(len(losses), "test", 1.5, top1)
    )


def test_grid_compares_kinds_seed_by_seed(accuracy):
    runs = list(accuracy.grid(Path("out"), ranks=[1, 3], seeds=[5, 6]))
    kinds = [(run.kind.update, run.kind.ranks, run.seed) for run in runs]
    assert kinds == [
        ("step", 1, 5), ("step", 3, 5), ("round", 3, 5),
        ("step", 1, 6), ("step", 3, 6), ("round", 3, 6),
    ]  # fmt: skip
    assert len({run.directory for run in runs}) == 6
    by_round = " ".join(runs[2].command("srun -n", ["my.toml", "--rate", "0.1"]))
    assert by_round.startswith("srun -n 3 ") and "mpicnn.train my.toml --rate 0.1 " in by_round
    assert f"--fc-update round --fc-rate {1 / 3!r} " in by_round and "--seed 5 " in by_round
    assert "fc-" not in " ".join(runs[1].command("srun -n", []))


def test_table_is_mean_and_deviation_over_seeds(accuracy, tmp_path):
    runs = list(accuracy.grid(tmp_path, ranks=[1, 2], seeds=[1, 2]))
    for run, top1 in zip(runs, (0.5, 0.52, 0.6, 0.54, 0.52, 0.58), strict=True):
        far = 0.25 if run.kind.update == "round" else 0.0
        leave(run, [2.0, 1.0 + run.seed * far], top1)
    found = accuracy.results(runs)
    assert [result.apart for result in found] == [0, 0, 0.25, 0, 0, 0.5]
    lines = accuracy.table(found).splitlines()
    # sqrt(2) of half the difference: 2.83 for 4 points.
    assert lines[2:] == [
        "| every step | 1 | (12, 12) | 52.00 ± 2.83 | 50.00, 54.00 | 1.5000 ± 0.0000 | 0e+00 |",
        "| every step | 2 | (12, 12) | 52.00 ± 0.00 | 52.00, 52.00 | 1.5000 ± 0.0000 | 0e+00 |",
        "| every round | 2 | (12, 6) | 59.00 ± 1.41 | 60.00, 58.00 | 1.5000 ± 0.0000 | 5e-01 |",
    ]


def test_a_run_is_finished_with_its_last_test(accuracy, tmp_path):
    whole, short = accuracy.grid(tmp_path, ranks=[1], seeds=[1, 2])
    assert not whole.finished()
    leave(whole, [2.0, 1.0], 0.5)
    leave(short, [2.0, 1.0], 0.5, epochs=0.3)
    assert whole.finished() and not short.finished()
    metrics = whole.directory / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert not whole.finished()


@pytest.mark.limit(180)
def test_runs_are_done_once_and_a_failure_is_one_line(tmp_path):
    out = tmp_path / "out"
    script = (BENCH / "accuracy.py", out, "--ranks", "1,2", "--seeds", 3)
    settings = ("--", "--epochs", 0.02, "--threads", 1)
    job = mpi_jobs.run(0, *script, *settings, seconds=120)
    assert job.code == 0, job.err
    assert job.out.count("-m mpicnn.train") == 3
    one, two, by_round = csv.DictReader((out / "accuracy.csv").read_text().splitlines())
    assert one["top1"] == two["top1"] and float(two["apart"]) < 1e-5  # float32, two steps
    assert float(by_round["apart"]) > 1e-4 and by_round["fc_batch"] == "64"
    again = mpi_jobs.run(0, *script, *settings)
    assert again.code == 0 and "mpicnn.train" not in again.out
    assert again.out in job.out
    other = mpi_jobs.run(0, *script, *settings, "--rate", 0.1)
    assert other.code == 2 and "was begun with: --epochs 0.02" in other.err
    wrong = mpi_jobs.run(0, BENCH / "accuracy.py", tmp_path / "new", "--ranks", 1, "--", "--x", 1)
    assert wrong.code == 2 and "--x: no such option" in wrong.err
    assert len(wrong.err.splitlines()) == 1


def test_sides_of_the_batch_sizes_are_compared_with_the_first(accuracy, tmp_path):
    large_batch = importlib.import_module("large_batch")
    runs = list(large_batch.grid(tmp_path, ranks=1, seeds=[1, 2]))
    assert len({run.directory for run in runs}) == 2 * len(large_batch.SIDES)
    for run in runs:
        leave(run, [2.0], 0.8 if run.kind.update == "SGD" else 0.5 + run.seed / 100)
    first, linear, *_ = large_batch.table(runs).splitlines()[2:]
    assert first == "| SGD | 64 | 80.00 ± 0.00 | +0.00 | 80.00, 80.00 |"
    assert linear == "| SGD, linear | 2048 | 51.50 ± 0.71 | -28.50 | 51.00, 52.00 |"
    command = runs[-1].command("mpirun -n", [])
    assert {"--batch", "2048", "lamb", "--seed", "2"} <= set(command)
