"""Compare what steps are forecast to take with what they take: networks and plans by seed.

Forecasts and steps take turns. None of the cases has been used to fit anything.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI
from script import Parser, machine, save, versions
from task import Ours, Task

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile_all
from mpicnn.division.plan import Plan
from mpicnn.division.presets import preset
from mpicnn.division.propagation import check_batch
from mpicnn.division.verify import check
from mpicnn.errors import UserError
from mpicnn.job.agreement import agree
from mpicnn.job.launch import launch
from mpicnn.ops.interface import Backend
from mpicnn.run.prediction import predict

NETWORKS = "lenet5,cuda-convnet,marques-50-500,alexnet-cifar,resnet20,squeezenet,googlenet"
PLANS = ("data", "owt", "fc-output", "fc-input", "filter", "master-worker", "branches")
APART = 0.1
"""By how much two steps of a network must differ for their order to count."""


@dataclass(frozen=True)
class Case:
    """A network, the examples of a step, and a plan with a name."""

    network: str
    batch: int
    name: str
    plan: Plan
    task: Task


def cases(rng: random.Random, networks: Sequence[str], ranks: int, count: int) -> Iterator[Case]:
    """Yield so many cases that plans allow, the same on all ranks."""
    found = 0
    while found < count:
        network, batch = rng.choice(networks), rng.choice([16, 32, 64, 96])
        name, scheme = rng.choice(PLANS), rng.choice("aabc")
        sync = rng.choice(["allreduce", "sharded"])
        shares = [rng.choice([1.0, 1.0, 2.0, 3.0]) for _ in range(ranks)]
        task = Task.draw(network, batch)
        try:
            plan = preset(name, task.model, (ranks,), (tuple(shares),), scheme=scheme, sync=sync)
            check_batch(task.model, plan, batch)
            check(compile_all(task.model, plan, batch))
        except UserError:
            continue
        found += 1
        parts = ":".join(f"{share:.0f}" for share in shares)
        yield Case(network, batch, f"{name}-{scheme} {sync} {parts}", plan, task)


def row_of(mesh: Mesh, backend: Backend, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a case was forecast to take, and what it took. Collective.

    `noise` is how far the turns' steps were from their median, on average, as a part of it.
    """
    ours = Ours(mesh, backend, case.task, case.plan)
    ours.step()
    expected, took = [], []
    for _ in range(options.repeats):
        found = predict(ours.distributed, ours.optimiser, case.batch)
        expected.append(found.timeline.seconds)
        steps = max(3, ceil(options.turn / found.timeline.seconds))
        mesh.collect(np.zeros(1))
        since = perf_counter()
        for _ in range(steps):
            ours.step()
        took.append(float(mesh.collect(np.array(perf_counter() - since)).max()) / steps)
    middle = median(took)
    return {
        "network": case.network,
        "batch": case.batch,
        "plan": case.name,
        "forecast_ms": 1e3 * median(expected),
        "step_ms": 1e3 * middle,
        "error": median(expected) / middle - 1,
        "noise": float(np.mean([abs(each / middle - 1) for each in took])),
    }


def ordered(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return how many pairs of plans of one network and batch the forecast orders rightly, of how
    many whose steps differ by more than `APART`."""
    right = tried = 0
    for a, b in combinations(rows, 2):
        if (a["network"], a["batch"]) != (b["network"], b["batch"]):
            continue
        low, high = sorted((a, b), key=lambda row: row["step_ms"])
        if high["step_ms"] > (1 + APART) * low["step_ms"]:
            tried += 1
            right += low["forecast_ms"] < high["forecast_ms"]
    return right, tried


def totals(rows: Sequence[dict[str, Any]]) -> str:
    """Return the errors of all cases in two lines."""
    errors = [abs(row["error"]) for row in rows]
    right, tried = ordered(rows)
    return (
        f"{len(rows)} cases: error median {100 * median(errors):.1f} %, 90th percentile "
        f"{100 * np.percentile(errors, 90):.1f} %; noise of the steps median "
        f"{100 * median(row['noise'] for row in rows):.1f} %\n"
        f"{right} of {tried} pairs that differ by more than {100 * APART:.0f} % are ordered rightly"
    )


def line(row: dict[str, Any]) -> str:
    """Return a case as a line of the table."""
    return (
        f"{row['network']:<16}{row['batch']:>5}  {row['plan']:<32}{row['forecast_ms']:>10.1f}"
        f"{row['step_ms']:>10.1f}{100 * row['error']:>+8.1f}{100 * row['noise']:>8.1f}"
    )


def parse() -> argparse.Namespace:
    """Return the options of the command line. Raises UserError for wrong ones."""
    parser = Parser(__doc__, NETWORKS)
    parser.set_defaults(threads=1, repeats=3)
    parser.add_argument("--cases", type=int, default=25, help="how many to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of steps in a turn")
    return parser.parse_args()


def main(comm: MPI.Intracomm) -> None:
    """Go through the cases; rank 0 prints and saves what came out."""
    options = agree(comm, parse)
    mesh = Mesh(comm)
    backend = agree(comm, ops.load, options.backend)
    backend.set_threads(options.threads)
    about = machine()
    if comm.rank == 0:
        print(f"{about['cpu']}; {versions(about)}; {comm.size} ranks x {options.threads} thread(s)")
        print(f"{'network':<16}{'batch':>5}  {'plan':<32}{'forecast':>10}{'step ms':>10}{'%':>8}"
              f"{'noise':>8}", flush=True)  # fmt: skip
    rng = random.Random(f"{options.seed} {comm.size}")
    rows = []
    for case in cases(rng, options.models.split(","), comm.size, options.cases):
        rows.append(row_of(mesh, backend, case, options))
        if comm.rank == 0:
            print(line(rows[-1]), flush=True)
    if comm.rank == 0:
        print(totals(rows))
    if options.out:
        common = {"ranks": comm.size, "threads": options.threads, **about}
        kept = [row | common for row in rows] if comm.rank == 0 else []
        agree(comm, save, kept, options.out)


if __name__ == "__main__":
    launch(main)
