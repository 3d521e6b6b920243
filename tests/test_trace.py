"""The timeline that --trace writes."""

import json

import mpi_jobs
import pytest

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
        # What a rank does follows one thing after another, give or take the rounding of times.
        ordered = sorted(lanes[1], key=lambda e: e["ts"])
        assert all(
            a["ts"] + a["dur"] <= b["ts"] + 0.5 for a, b in zip(ordered, ordered[1:], strict=False)
        )
        computing = [e for e in lanes[1] if e["cat"] != "communication"]
        overlaps = [
            (t["name"], c["name"])
            for t in lanes[2]
            for c in computing
            if t["ts"] < c["ts"] + c["dur"] and c["ts"] < t["ts"] + t["dur"]
        ]
        assert any(travelling == "fc3" for travelling, _ in overlaps)
