"""Time whole training steps under a plan, beside the same network in PyTorch on the same cores."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from mpi4py import MPI
from script import Parser, machine, save, some_of, versions
from task import HYPER, Ours, Task
from turns import Cores, Side, measure, rest, within

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.planfile import load_plan
from mpicnn.division.propagation import check_batch
from mpicnn.job.agreement import agree, broadcast_text
from mpicnn.job.launch import launch
from mpicnn.ops.interface import Backend
from mpicnn.settings.plan_groups import PlanChoice

VARIANTS = ("eager", "channels-last", "compiled", "compiled-cl")
TOLERANCE = 1e-4  # between the losses of both sides, absolute or relative


def peers(
    task: Task,
    losses: Sequence[float],
    variants: Sequence[str],
    limit: float,
    tolerance: float = TOLERANCE,
    device: str = "cpu",
    precision: str = "float32",
) -> tuple[list[Side], list[str]]:
    """Return PyTorch's sides of a task, ready to run, and why others are left out.

    `losses` are mpicnn's before each of the first steps, without dropout. Where PyTorch's are
    others, the same is not timed: raises RuntimeError, or leaves out what a compiler made wrong.
    On a GPU, PyTorch's steps are not waited for until a turn ends.
    """
    import torch
    from peers import Peer

    sides, notes = [], []
    for variant in variants:
        try:
            with within(limit):
                given = task.model, task.weights(), task.x, task.labels, HYPER
                peer = Peer(variant, *given, device, precision)
                peer.dropout(False)
                theirs = [peer.step() for _ in losses]
                peer.dropout(True)
                peer.step()
        except Exception as error:  # that there is no compiler shows in many ways
            lines = str(error).strip().splitlines() or [""]
            notes.append(f"{variant} left out: {type(error).__name__}: {lines[0]}")
            continue
        if not np.allclose(theirs, losses, rtol=tolerance, atol=tolerance):
            differ = f"its losses {theirs} are not {losses}"
            if not variant.startswith("compiled"):
                raise RuntimeError(f"{task.model.name}, PyTorch {variant}: {differ}")
            notes.append(f"{variant} left out: {differ}")
            continue
        finish = torch.cuda.synchronize if device == "cuda" else bool
        sides.append(Side(variant, peer.run, together=False, finish=finish))
    return sides, notes


def compare(
    mesh: Mesh, cores: Cores, backend: Backend, task: Task, options: argparse.Namespace
) -> tuple[dict[str, list[float]], list[str]]:
    """Return the seconds per step of every side, and rank 0's remarks. Collective."""
    comm = mesh.world.comm
    plan = agree(comm, load_plan, PlanChoice(plan=options.plan), task.model, comm.size)
    agree(comm, check_batch, task.model, plan, options.batch)
    sides = [Side("mpicnn", Ours(mesh, backend, task, plan).step, together=True)]
    notes: list[str] = []
    if options.peer:
        checked = Ours(mesh, backend, task.without_dropout(), plan)
        losses = [checked.step() for _ in range(2)]
        del checked
        found: list[Side] = []
        if comm.rank == 0:
            with cores.shared():
                found, notes = peers(task, losses, options.variants, options.limit)
        rest(mesh)
        names = broadcast_text(comm, " ".join(side.name for side in found)).split()
        sides += found or [Side(name, None, together=False) for name in names]
    return measure(mesh, cores, sides, options.repeats, options.limit), notes


def parse() -> argparse.Namespace:
    """Return the options of the command line. Raises UserError for wrong ones."""
    parser = Parser(__doc__, "marques-50-500,cuda-convnet,default,lenet5,vgg11")
    parser.add_argument("--plan", default="data", help="preset or FILE.toml")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per side and network")
    parser.add_argument("--variants", type=some_of(VARIANTS), default=VARIANTS, help="of PyTorch")
    return parser.parse_args()


def rows_of(
    task: Task, samples: dict[str, list[float]], common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row per side; the rates are images/s, `ratio` is mpicnn's over the side's."""
    rates = {name: [len(task.labels) / s for s in taken] for name, taken in samples.items()}
    ours = median(rates["mpicnn"])
    return [
        {
            "network": task.model.name,
            "input": "x".join(map(str, task.model.input_shape)),
            "side": name,
            "images_per_s": f"{median(taken):.2f}",
            "lowest": f"{min(taken):.2f}",
            "highest": f"{max(taken):.2f}",
            "turns": len(taken),
            "ratio": f"{ours / median(taken):.3f}",
            **common,
        }
        for name, taken in rates.items()
    ]


def line(network: str, cells: Sequence[object]) -> str:
    """Return one line of the table."""
    return f"{network:<18}" + "".join(f"{cell:>14}" for cell in cells)


def table_line(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table's line for the rows of one network."""
    rates = {row["side"]: float(row["images_per_s"]) for row in rows}
    shown = [f"{rates[n]:,.1f}" if n in rates else "-" for n in ("mpicnn", *VARIANTS)]
    best = max((rates[name] for name in VARIANTS if name in rates), default=None)
    ratio = f"{rates['mpicnn'] / best:.2f}" if best else "-"
    row = rows[0]
    return line(row["network"], [row["batch"], f"{row['ranks']}x{row['threads']}", *shown, ratio])


def main(comm: MPI.Intracomm) -> None:
    """Time every network in turn; rank 0 prints and saves what came out."""
    options = agree(comm, parse)
    mesh = Mesh(comm)
    backend = agree(comm, ops.load, options.backend)
    backend.set_threads(options.threads)
    cores = Cores(mesh)
    without = ""
    if options.peer and len(set(mesh.texts(socket.gethostname()))) > 1:
        without = "the ranks run on several hosts: mpicnn is timed alone"
    elif options.peer and find_spec("torch") is None:
        without = "PyTorch is not installed: mpicnn is timed alone"
    options.peer = options.peer and not broadcast_text(comm, without)
    if options.peer and comm.rank == 0:
        import torch

        torch.set_num_threads(comm.size * options.threads)
    about = machine()
    common = {
        "batch": options.batch, "ranks": comm.size, "threads": options.threads,
        "plan": options.plan, "backend": backend.NAME, "cores": len(cores.all), **about,
    }  # fmt: skip
    if comm.rank == 0:
        print(f"{about['cpu']}, {len(cores.all)} cores; {versions(about)}")
        print(f"plan {options.plan}, backend {backend.NAME}; images/s, medians of turns")
        if without:
            print(without)
        head = ["batch", "ranks x thr.", "mpicnn", *VARIANTS, "ratio to best"]
        print(line("network", head), flush=True)
    rows: list[dict[str, Any]] = []
    for name in options.models.split(","):
        task = agree(comm, Task.draw, name, options.batch)
        samples, notes = compare(mesh, cores, backend, task, options)
        found = rows_of(task, samples, common)
        rows += found
        if comm.rank == 0:
            print("\n  ".join([table_line(found), *notes]), flush=True)
        if options.out:
            agree(comm, save, rows if comm.rank == 0 else [], options.out)


if __name__ == "__main__":
    launch(main)
