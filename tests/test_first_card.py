"""bench/first_card.py judges what its commands print, and docs/first-card.md has the same ones."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import mpi_jobs
import pytest

ROOT = Path(__file__).parents[1]
STANDIN = ROOT / "tests" / "standin"
SMOKE = """\
mpicnn 0.1.0: 1 rank, MPICH 5.0.2
  hosts  vm: 1 x Stand-in H100 (cuda, 2 threads)
test: loss 1.2070, top-1 57.00 %, top-5 96.75 %
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module("first_card")


def with_standin(gpus):
    path = [str(STANDIN), os.environ.get("PYTHONPATH", "")]
    return {"STANDIN_GPUS": gpus, "PYTHONPATH": os.pathsep.join(path)}


@pytest.mark.limit(120)
def test_the_first_stage_passes_where_training_works(tmp_path):
    job = mpi_jobs.run(
        0, ROOT / "bench" / "first_card.py", "--stages", "smoke", "--out", tmp_path / "out",
        seconds=110, **with_standin("1"),
    )  # fmt: skip
    assert job.code == 0, job.out + job.err
    (row,) = csv.DictReader((tmp_path / "out" / "first-card.csv").read_text().splitlines())
    assert (row["stage"], row["code"], row["wrong"]) == ("smoke", "0", "")
    assert "test: loss" in (tmp_path / "out" / "smoke.log").read_text()


def test_without_a_gpu_nothing_else_is_tried(tmp_path):
    job = mpi_jobs.run(
        0, ROOT / "bench" / "first_card.py", "--out", tmp_path / "out", **with_standin("0")
    )
    assert job.code == 69 and "shows no GPUs to this rank" in job.out, job.out
    assert len((tmp_path / "out" / "first-card.csv").read_text().splitlines()) == 2


def test_what_is_wrong_is_seen(script, tmp_path):
    assert script.smoke(SMOKE, tmp_path) == ""
    for changed in (
        SMOKE.replace("cuda,", "native,"),
        SMOKE.replace("1.2070", "1.2300"),
        SMOKE.replace("test: loss", "loss"),
        SMOKE.replace("test:", "note: cuDNN Frontend is not installed\ntest:"),
    ):
        assert script.smoke(changed, tmp_path)
    assert script.passed("282 passed, 3 skipped in 20 s", tmp_path) == ""
    for text in (
        "2 failed, 280 passed in 1 s",
        "1 error in 1 s",
        "280 passed, 1 error",
        "0 passed",
    ):
        assert script.passed(text, tmp_path)
    checked = "40 passed in 9 s\n========= ERROR SUMMARY: {} errors\n"
    assert script.unharmed(checked.format(0), tmp_path) == ""
    assert script.unharmed(checked.format(2), tmp_path) == "2 errors"
    assert script.unharmed("40 passed", tmp_path)
    assert script.unharmed("1 failed\nERROR SUMMARY: 0 errors", tmp_path)
    judge = script.rows_for("steps", 1, "lenet5:3")
    assert judge("", tmp_path) == "0 rows, not 3"
    (tmp_path / "steps.csv").write_text("network\nlenet5\nlenet5\nlenet5\n")
    assert judge("", tmp_path) == ""
    assert judge("  eager left out: TimeoutError: not ready", tmp_path)
    assert script.trained("test: loss 0.36, top-1 87.75 %", tmp_path) == ""
    assert script.trained("test: loss 0.36, top-1 12.00 %", tmp_path) == "top-1 12.00 %"


def test_stages_end_in_time_and_go_on(script, tmp_path, monkeypatch, capsys):
    def stage(name, code, minutes=1.0):
        return script.Stage(name, minutes, [sys.executable, "-c", code], "", script.passed)

    made = [
        stage("kernels", "print('3 passed')"),
        stage("memory", "import time; print('3 passed', flush=True); time.sleep(60)", 0.05),
        stage("steps", "print('3 passed'); raise SystemExit(3)"),
        script.Stage("end", 1, ["", "-c", ""], "", script.passed),
    ]
    monkeypatch.setattr(script, "stages", lambda *_: made)
    assert script.main(["--out", str(tmp_path / "out")]) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "first-card.csv").read_text().splitlines()))
    wrong = [row["wrong"] for row in rows]
    assert wrong[:3] == ["", "not done in 0.05 minutes", "exit code 3"]
    assert "left out" in wrong[3]
    assert script.main(["--out", str(tmp_path / "out")]) == 2
    assert "holds files" in capsys.readouterr().err


def test_the_page_has_the_commands_of_the_script(script, monkeypatch):
    monkeypatch.setattr(script, "sanitizer", lambda: "compute-sanitizer")
    page = (ROOT / "docs" / "first-card.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    made = script.stages(Path("first-card"))
    assert len(lines) == len(made) == 6 and sum(stage.minutes for stage in made) <= 30
    for line, stage in zip(lines, made, strict=True):
        command = " ".join(stage.command).replace(sys.executable, "python")
        command = command.replace(f"{ROOT}{os.sep}", "")
        assert line.startswith(f"| `{stage.name}` | `{command}` | {stage.minutes:g} |")


def test_arrays_can_do_without_a_pool():
    job = [sys.executable, "-m", "pytest", "-q", "-p", "no_pool", "tests/test_cuda_layout.py"]
    environment = mpi_jobs.environment()
    helpers = [str(ROOT / "tests" / "helpers"), *filter(None, [os.environ.get("PYTHONPATH")])]
    if "standin" in (sys.modules.get("cupy") and sys.modules["cupy"].__file__ or "standin"):
        helpers.append(str(STANDIN))
    environment["PYTHONPATH"] = os.pathsep.join(helpers)
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
