"""Compare plans on the ranks of a job: time, traffic, memory; and DistributedDataParallel's."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from mpi4py import MPI
from script import Parser, machine, save, some_of, versions
from sides import Entry, divided, entries_of, peers_of
from task import Task
from turns import Cores, Side, measure

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.job.agreement import agree, broadcast_text
from mpicnn.job.launch import launch
from mpicnn.ops.interface import Backend

PROGRESS = ("thread", "poll", "none")
VARIANTS = ("eager", "channels-last")


def rows_of(
    mesh: Mesh, task: Task, entries: list[Entry], samples: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Return one row per side. Collective.

    Time exposed in communication is, step by step, that of the rank that has least of it, for the
    others' holds their waiting for the slowest; bytes and memory are the most of any rank's.
    """
    peers = [median(samples[e.name]) for e in entries if e.plan.startswith("DDP")]
    best = min(peers, default=float("nan"))
    rows = []
    for entry in entries:
        taken = samples[entry.name]
        used = np.array([entry.sent_mb, entry.wire_mb, entry.arrays_mb, entry.peak_mb])
        most = mesh.collect(used).max(axis=0)
        exposed = [
            mesh.collect(np.array(turn)).min(axis=0).mean()
            for turn in entry.exposed[-len(taken) :]
            if turn
        ]
        values = {
            "step_ms": 1e3 * median(taken),
            "lowest_ms": 1e3 * min(taken),
            "highest_ms": 1e3 * max(taken),
            "images_per_s": len(task.labels) / median(taken),
            "exposed_ms": 1e3 * median(exposed) if exposed else float("nan"),
            "sent_mb": most[0],
            "wire_mb": most[1],
            "arrays_mb": most[2],
            "peak_mb": most[3],
            "speed_over_ddp": best / median(taken),
        }
        rows.append(
            {"network": task.model.name, "side": entry.name}
            | {name: "" if value != value else f"{value:.3f}" for name, value in values.items()}
            | {"turns": len(taken)}
        )
    return rows


SHOWN = {
    "step_ms": "step ms",
    "images_per_s": "images/s",
    "exposed_ms": "exposed ms",
    "sent_mb": "sent MB",
    "wire_mb": "on wire MB",
    "arrays_mb": "arrays MB",
    "peak_mb": "peak MB",
    "speed_over_ddp": "over DDP",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text, a line per side."""
    lines = [f"{rows[0]['network']:<22}" + "".join(f"{head:>12}" for head in SHOWN.values())]
    for row in rows:
        digits = {"speed_over_ddp": 2}
        cells = [f"{float(row[key]):,.{digits.get(key, 1)}f}" if row[key] else "-" for key in SHOWN]
        lines.append(f"{row['side']:<22}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """Return the options of the command line. Raises UserError for wrong ones."""
    parser = Parser(__doc__, "alexnet-owt")
    parser.set_defaults(threads=1, repeats=5)
    plans = "data,data-sharded,owt-a,owt-b,owt-c"
    parser.add_argument("--plans", default=plans, help="preset[-scheme][-sharded], by commas")
    parser.add_argument(
        "--progress", type=some_of(PROGRESS), default=("thread", "none"),
        help="how each plan is run: who lets messages move beside the computation",
    )  # fmt: skip
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per side and network")
    parser.add_argument("--variants", type=some_of(VARIANTS), default=VARIANTS, help="of PyTorch")
    parser.add_argument("--count", action="store_true", help="only count bytes and memory")
    return parser.parse_args()


def main(comm: MPI.Intracomm) -> None:
    """Time the plans for every network; rank 0 prints and saves what came out."""
    options = agree(comm, parse)
    mesh = Mesh(comm)
    backend = agree(comm, ops.load, options.backend)
    backend.set_threads(options.threads)
    cores = Cores(mesh)
    without = ""
    if options.peer and find_spec("torch") is None:
        without = "; PyTorch is not installed: mpicnn is timed alone"
    options.peer = options.peer and not broadcast_text(comm, without)
    about = machine()
    common = {
        "batch": options.batch, "ranks": comm.size, "threads": options.threads,
        "hosts": len(set(mesh.texts(MPI.Get_processor_name()))), "backend": backend.NAME, **about,
    }  # fmt: skip
    if comm.rank == 0:
        print(f"{about['cpu']}, {len(cores.all)} cores; {versions(about)}")
        print(f"{comm.size} ranks on {common['hosts']} host(s), {options.threads} thread(s) each,")
        print(f"batch {options.batch}, backend {backend.NAME}{without}", flush=True)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if options.peer:
            import torch
            from ddp import group

            torch.set_num_threads(options.threads)
            stack.enter_context(group(mesh))
        for name in options.models.split(","):
            task = agree(comm, Task.draw, name, options.batch)
            rows += compare(mesh, cores, backend, task, options, common)
            if options.out:
                agree(comm, save, rows if comm.rank == 0 else [], options.out)


def compare(
    mesh: Mesh, cores: Cores, backend: Backend, task: Task,
    options: argparse.Namespace, common: dict[str, Any],
) -> list[dict[str, Any]]:  # fmt: skip
    """Time one network under every plan, and in PyTorch; rank 0 prints the table. Collective."""
    comm = mesh.world.comm
    plans = options.plans.split(",")
    entries: list[Entry] = []
    for text in plans:
        entries += entries_of(comm, backend, task, text, options.progress)
    if options.peer:
        still = task.without_dropout()
        checked = divided(comm, backend, still, plans[0])
        losses = [checked.step() for _ in range(2)]
        del checked
        entries += peers_of(mesh, task, losses, options.variants)
    sides = [
        Side(entry.name, entry.step, True, begin=entry.begin, end=entry.end) for entry in entries
    ]
    samples = {side.name: [float("nan")] for side in sides}
    if not options.count:
        samples = measure(mesh, cores, sides, options.repeats, options.limit)
    rows = [row | common for row in rows_of(mesh, task, entries, samples)]
    if comm.rank == 0:
        print(table(rows), flush=True)
    return rows


if __name__ == "__main__":
    launch(main)
