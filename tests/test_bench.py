"""The scripts of bench/ run, and their tables say what was measured."""

import csv
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from time import perf_counter

import mpi_jobs
import numpy as np
import pytest
from mpi4py import MPI

from mpicnn import models
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.forecast.cost import step_costs
from mpicnn.ops import load

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.limit(60)
def test_kernels_are_timed(tmp_path):
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        0, BENCH / "kernels.py", "--no-peer", "--models", "lenet5",
        "--kernels", "linear,activate_dx",
        "--batch", "2", "--threads", "1", "--backend", "numpy", "--repeats", "1", "--out", out,
        seconds=40,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["kernel"] for row in rows] == ["linear"] * 3 + ["activate_dx"] * 4
    for row in rows:
        assert row["unit"] == ("GFLOP/s" if row["kernel"] == "linear" else "GB/s")
        assert float(row["rate"]) > 0 and float(row["share"]) > 0
        assert row["ratio"] == row["eager_ms"] == ""
    assert rows[0]["arguments"] == "2x400 120x400 120 True"


@pytest.mark.limit(60)
@pytest.mark.parametrize("ranks", [0, 2])
def test_script_times_a_network(tmp_path, ranks):
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        ranks, BENCH / "step.py", "--no-peer", "--models", "lenet5", "--batch", "4",
        "--threads", "1", "--backend", "numpy", "--repeats", "2", "--out", out, seconds=40,
    )  # fmt: skip
    assert job.code == 0, job.err
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert (row["network"], row["side"], row["turns"]) == ("lenet5", "mpicnn", "2")
    assert int(row["ranks"]) == max(1, ranks)
    rate = float(row["images_per_s"])
    assert 0 < float(row["lowest"]) <= rate <= float(row["highest"])
    table = [text.split() for text in job.out.splitlines()]
    assert ["lenet5", "4", f"{max(1, ranks)}x1", f"{rate:,.1f}", *"-----"] in table


STANDIN = str(Path(__file__).parent / "standin")
GPU = BENCH / "gpu.py", "--models", "lenet5:3", "--edge", "16", "--copied", "1", "--repeats", "1"


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", [True, False])
def test_gpu_is_timed(tmp_path, peer, monkeypatch):
    """On the stand-in for a GPU, with PyTorch on the CPU: that it runs, not how fast."""
    if peer:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    out = tmp_path / "rows.csv"
    path = os.pathsep.join([STANDIN, os.environ.get("PYTHONPATH", "")])
    job = mpi_jobs.run(
        0, *GPU, "--variants", "channels-last", "--out", out, *([] if peer else ["--no-peer"]),
        seconds=100, STANDIN_GPUS="1", PYTHONPATH=path,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    sides = ["mpicnn", "channels-last"] if peer else ["mpicnn"]
    precisions = [p for p in ("float32", "tf32", "bf16") for _ in sides]
    assert [row["precision"] for row in rows] == precisions
    assert [row["side"] for row in rows] == sides * 3
    for row in rows:
        assert (row["network"], row["batch"]) == ("lenet5", "3")
        assert 0 < float(row["lowest_ms"]) <= float(row["step_ms"]) <= float(row["highest_ms"])
        least, step = float(row["least_ms"]), float(row["step_ms"])
        # of the share three decimals are written, of the times four
        rounding = 1e-3 + least / step * (1e-4 / least + 1e-4 / step)
        assert float(row["share"]) == pytest.approx(least / step, rel=0, abs=rounding)
    assert ("PyTorch on cpu" in job.out) == peer
    monkeypatch.syspath_prepend(BENCH)
    judge = importlib.import_module("first_card").rows_for("rows", len(sides), "lenet5:3")
    assert judge(job.out, tmp_path) == "" and judge(job.out, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("gpus", "options", "code", "message"),
    [
        ("0", (), 69, "CUDA shows no GPU"),
        ("1", ("--models", "lenet5:x"), 2, "models lenet5:x: expected"),
        ("1", ("--backend", "numpy"), 2, "backend numpy: gpu.py computes with cuda"),
    ],
)
def test_gpu_script_says_what_is_wrong(gpus, options, code, message):
    path = os.pathsep.join([STANDIN, os.environ.get("PYTHONPATH", "")])
    job = mpi_jobs.run(0, *GPU, *options, STANDIN_GPUS=gpus, PYTHONPATH=path)
    assert job.code == code
    assert message in job.err
    assert len(job.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--models", "lenet", "unknown network 'lenet'"),
        ("--batch", "0", "argument --batch: invalid"),
        ("--plan", "dat", "no preset 'dat'"),
        ("--variants", "lazy", "expected some of eager"),
    ],
)
def test_script_says_what_is_wrong(option, value, message):
    job = mpi_jobs.run(0, BENCH / "step.py", "--no-peer", "--models", "lenet5", option, value)
    assert job.code == 2
    assert message in job.err
    assert "Traceback" not in job.err


@pytest.mark.limit(120)
@pytest.mark.parametrize("peer", [True, False])
def test_schemes_are_compared(tmp_path, peer):
    if peer:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    out = tmp_path / "rows.csv"
    job = mpi_jobs.run(
        2, BENCH / "schemes.py", "--models", "lenet5", "--batch", "8", "--repeats", "2",
        "--plans", "data-sharded,owt-c", "--variants", "eager", "--out", out,
        *([] if peer else ["--no-peer"]), seconds=100,
    )  # fmt: skip
    assert job.code == 0, job.err
    rows = {row["side"]: row for row in csv.DictReader(out.read_text().splitlines())}
    plans = [f"{plan} {way}" for plan in ("data-sharded", "owt-c") for way in ("thread", "none")]
    assert list(rows) == [*plans, *(["DDP eager"] if peer else [])]
    for name in plans:
        row = rows[name]
        assert 0 < float(row["lowest_ms"]) <= float(row["step_ms"]) <= float(row["highest_ms"])
        # A part of every timed step, so of each turn and of their median, to the digits printed.
        assert 0 < float(row["exposed_ms"]) < float(row["step_ms"]) + 1e-3
        assert 0 < float(row["arrays_mb"]) < float(row["peak_mb"]) + 1
        assert bool(row["speed_over_ddp"]) == peer
    model = models.load("lenet5", (1, 28, 28), 10)
    for name, plan in (
        ("data-sharded", preset("data", model, (2,), sync="sharded")),
        ("owt-c", preset("owt", model, (2,), scheme="c")),
    ):
        sent = sum(cost.work.bytes_sent for cost in step_costs(compile(model, plan, 8), 4))
        assert float(rows[f"{name} none"]["sent_mb"]) == pytest.approx(max(sent) / 1e6, abs=1e-3)


def can_divide_hosts():
    """Say whether this process may make network namespaces and limit their links."""
    tools = all(shutil.which(tool) for tool in ("ip", "tc", "unshare"))
    if not tools or os.getuid():
        return False
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made


def hosts_made():
    """Return the names of the network namespaces that there are."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


@pytest.mark.limit(120)
def test_slow_links_carry_what_the_plan_predicts(tmp_path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not can_divide_hosts() or not mpirun.exists() or "MPICH" not in MPI.Get_library_version():
        pytest.skip("takes root, iproute2 and MPICH beside the interpreter")
    before = hosts_made()
    out = tmp_path / "rows.csv"
    path = f"{mpirun.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [
            BENCH / "slow_links.sh", "2", "1gbit", sys.executable, BENCH / "schemes.py",
            "--models", "cuda-convnet", "--plans", "data", "--progress", "poll", "--batch", "8",
            "--no-peer", "--count", "--out", out,
        ],
        env=mpi_jobs.environment(PATH=path), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert row["hosts"] == "2"
    # Headers of Ethernet, IP, TCP and MPI, acknowledgements, the loss and the meeting of ranks.
    assert 1 <= float(row["wire_mb"]) / float(row["sent_mb"]) < 1.25
    assert hosts_made() <= before


@pytest.mark.limit(120)
def test_faults_are_counted():
    """A sample; what each family asserts is shown by what the tests draw themselves."""
    families = ("random plans", "plan files", "image files", "kill -9, twice")
    only = [word for family in families for word in ("--only", family)]
    job = mpi_jobs.run(0, BENCH / "faults.py", "--count", 1, *only, seconds=110)
    assert job.code == 0, job.out + job.err
    rows = [line.rsplit(maxsplit=3) for line in job.out.splitlines()[1:]]
    assert [(name, tried, survived) for name, tried, survived, _ in rows] == [
        ("random plans", "1", "1"), ("plan files", "5", "5"), ("image files", "5", "5"),
        ("kill -9, twice", "1", "1"),
    ]  # fmt: skip


def test_trace_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    events = [
        {"name": name, "cat": kind, "ph": "X", "ts": ts, "dur": 900.0, "pid": rank, "tid": lane}
        for rank in (0, 1)
        for step in (0, 1, 2)
        for name, kind, ts, lane in (
            ("conv1", "convolution", 3000.0 * step, 1),
            ("fc2", "communication", 3000.0 * step + 500, 2),
            ("update", "other", 3000.0 * step + 2000, 1),
        )
    ]
    trace, out = tmp_path / "trace.json", tmp_path / "picture.png"
    trace.write_text(json.dumps({"traceEvents": events}))
    job = mpi_jobs.run(0, BENCH / "trace_picture.py", f"(a)={trace}", "--step", 1, "--out", out)
    assert job.code == 0, job.err
    assert out.read_bytes().startswith(b"\x89PNG")


def test_each_way_of_varying_images_is_timed_and_drawn(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    augmentation = importlib.import_module("augmentation")
    found = augmentation.costs(8, 6, batch=2, repeats=1)
    assert found.keys() == augmentation.WAYS.keys()
    assert min(found.values()) > 0
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 9, 8), np.uint8)
    drawn = augmentation.picture(images, np.zeros(1), scale=2)
    # saturation and hue are not for images of one channel
    assert drawn.size == (4 * (2 * 8 + 4), (len(augmentation.WAYS) - 2) * (2 * 9 + 4))
    np.testing.assert_array_equal(np.asarray(drawn)[:18:2, :16:2], images[0, 0])


def test_steps_that_are_timed_keep_no_marks(monkeypatch):
    """A step on a GPU makes some hundred events: kept, they would be 100,000 in a bench."""
    monkeypatch.syspath_prepend(BENCH)
    task = importlib.import_module("task")
    backend, alive = load("numpy"), weakref.WeakSet()

    class Mark(float):
        pass

    def now(_):
        mark = Mark(perf_counter())
        alive.add(mark)
        return mark

    marks = {
        "free": True,
        "since": now,
        "until": now,
        "between": lambda _, since, until: until - since,
    }
    monkeypatch.setattr(backend, "Timer", type("Timer", (), marks))
    drawn = task.Task.draw("lenet5", 2)
    plan = preset("data", drawn.model, (1,))
    ours = task.Ours(Mesh(MPI.COMM_SELF), backend, drawn, plan)
    kept = []
    for _ in range(6):
        ours.step()
        gc.collect()
        kept.append(len(alive))
    assert kept[2:] == kept[2:3] * 4 and kept[2] > 10
    assert sum(ours.spent.values()) > 0
