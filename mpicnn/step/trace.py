"""A timeline of some steps of every rank, for chrome://tracing and Perfetto.

The file is a JSON object of the Trace Event Format: complete events ("ph": "X") with times in
microseconds, a process per rank, and two threads of events: what the rank does, and what travels
meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from time import perf_counter
from typing import Any

FIRST, COUNT = 2, 10
"""The steps that are traced, counted from the start of the process: the first ones warm up."""

LANES = {1: "computes or waits", 2: "travels"}


class Trace:
    """Collect one rank's events, counted from `origin` (of `perf_counter`, s).

    Ranks make it right after a barrier, so that their times agree to its length.
    """

    def __init__(self) -> None:
        self.origin = perf_counter()
        self.events: list[dict[str, Any]] = []

    def add(self, name: str, category: str, start: float, end: float, lane: int = 1) -> None:
        """Record what happened from `start` to `end` (of `perf_counter`, s)."""
        self.events.append(
            {
                "name": name,
                "cat": category,
                "ph": "X",
                "ts": round(1e6 * (start - self.origin), 1),
                "dur": round(1e6 * (end - start), 1),
                "tid": lane,
            }
        )

    def text(self) -> str:
        """Return the events as JSON, to be brought together by `merged`."""
        return json.dumps(self.events)


def merged(texts: Sequence[str]) -> str:
    """Return one file's text from all ranks' `Trace.text`, in rank order."""
    events: list[dict[str, Any]] = []
    for rank, text in enumerate(texts):
        events.append(_label("process_name", rank, 0, f"rank {rank}"))
        events += [_label("thread_name", rank, lane, name) for lane, name in LANES.items()]
        events += [event | {"pid": rank} for event in json.loads(text)]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"})


def _label(kind: str, rank: int, lane: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": lane, "args": {"name": name}}
