"""Time whole training steps on one GPU, beside PyTorch and beside what the card can do.

Networks may have a batch of their own: `--models lenet5:256,vgg11`.

Both sides have the batch on the card and take turns of many steps. mpicnn reads the loss of every
step, as its training does; PyTorch's is not read, so that it need not wait within a turn. The
share of the card's limits is the time that the layers would take if each were held up only by its
arithmetic, at the rate of a large matrix product in the same precision, or only by its bytes, at
the rate of a large copy, whichever is longer, over the time of a step.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from mpi4py import MPI
from script import Parser, at_least_1, machine, save, some_of, versions
from step import VARIANTS, line, peers
from task import Ours, Task
from turns import Cores, Side, measure

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.devices import gpu
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.errors import DeviceError, UserError
from mpicnn.forecast.cost import step_costs
from mpicnn.job.launch import launch
from mpicnn.ops.interface import Backend

MODELS = (
    "marques-50-500,marques-150-800,marques-300-1000,marques-500-1500,marques-500-1500:1024,"
    "cuda-convnet:128,alexnet-owt:128,alexnet-owt:1024,vgg11:128"
)
# Between the losses of both sides, absolute or relative. bf16 keeps 8 bits of a value, TF32 11, and
# PyTorch rounds activations to bf16 too.
TOLERANCES = {"float32": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
_RUNS = 20  # of what limits the card


@dataclass(frozen=True)
class Limits:
    """What the card can do: FLOP/s of a matrix product, bytes/s of a copy, read and written."""

    flops: float
    bytes: float

    @classmethod
    def of(cls, backend: Backend, edge: int, copied: int) -> Limits:
        """Measure both, in the precision that is set: products of `edge`, copies of bytes."""
        from mpicnn.ops._cuda_gemm import multiply
        from mpicnn.ops._cuda_rounded import read

        draw = np.random.default_rng(0).standard_normal
        a, b = (read(backend.xp.asarray(draw((edge, edge), np.float32))) for _ in range(2))
        c = backend.xp.empty((edge, edge), np.float32)
        source, target = (backend.xp.zeros(copied // 4, np.float32) for _ in range(2))

        def copy() -> None:
            target[...] = source

        multiplied = _seconds(backend, lambda: multiply(a, b, c))
        return cls(2 * edge**3 / multiplied, 2 * target.nbytes / _seconds(backend, copy))


def _seconds(backend: Backend, work: Any) -> float:
    """Return the seconds of one run among `_RUNS`, after one that is not counted."""
    work()
    backend.synchronize()
    since = perf_counter()
    for _ in range(_RUNS):
        work()
    backend.synchronize()
    return (perf_counter() - since) / _RUNS


def floor(ours: Ours, limits: Limits) -> float:
    """Return the least seconds of a step: the sum over layers of what holds each up longest."""
    whole = ours.distributed
    costs = step_costs(compile(whole.model, whole.plan, ours.program.count), 4)
    return sum(
        max(cost.work.flops.item() / limits.flops, cost.work.bytes_touched.item() / limits.bytes)
        for cost in costs
    )


def compare(
    mesh: Mesh,
    backend: Backend,
    task: Task,
    precision: str,
    limits: Limits,
    options: argparse.Namespace,
) -> tuple[dict[str, list[float]], float, list[str]]:
    """Return the seconds per step of every side, the least seconds, and remarks."""
    backend.set_precision(precision)
    plan = preset("data", task.model, (1,))
    ours = Ours(mesh, backend, task, plan, backend.upload)
    sides = [Side("mpicnn", ours.step, together=True, finish=backend.synchronize)]
    notes: list[str] = []
    if options.peer:
        from peers import multiply_in

        multiply_in(precision)
        checked = Ours(mesh, backend, task.without_dropout(), plan, backend.upload)
        losses = [checked.step() for _ in range(2)]
        found, notes = peers(
            task, losses, options.variants, options.limit,
            TOLERANCES[precision], options.place, precision,
        )  # fmt: skip
        sides += found
    samples = measure(mesh, Cores(mesh), sides, options.repeats, options.limit)
    return samples, floor(ours, limits), notes


def parse() -> argparse.Namespace:
    """Return the options of the command line. Raises UserError for wrong ones."""
    parser = Parser(__doc__, MODELS)
    parser.add_argument("--precisions", type=some_of(tuple(TOLERANCES)), default=tuple(TOLERANCES))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per side and network")
    parser.add_argument("--variants", type=some_of(VARIANTS), default=VARIANTS, help="of PyTorch")
    parser.add_argument("--edge", type=int, default=8192, help="of the product that is the limit")
    parser.add_argument("--copied", type=int, default=2048, help="MiB of the copy that is")
    return parser.parse_args()


def work_of(text: str, batch: int) -> tuple[str, int]:
    """Return network and batch of NETWORK or NETWORK:BATCH. Raises UserError for neither."""
    name, _, own = text.partition(":")
    try:
        return name, at_least_1(own or str(batch))
    except ValueError:
        raise UserError(f"models {text}: expected NETWORK or NETWORK:BATCH") from None


def rows_of(
    task: Task, samples: dict[str, list[float]], least: float, common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return one row per side; `ratio` is mpicnn's rate over the side's."""
    ours = median(samples["mpicnn"])
    return [
        {
            "network": task.model.name,
            "batch": len(task.labels),
            "side": name,
            "step_ms": f"{median(taken) * 1e3:.4f}",
            "lowest_ms": f"{min(taken) * 1e3:.4f}",
            "highest_ms": f"{max(taken) * 1e3:.4f}",
            "turns": len(taken),
            "images_per_s": f"{len(task.labels) / median(taken):.1f}",
            "ratio": f"{median(taken) / ours:.3f}",
            "least_ms": f"{least * 1e3:.4f}",
            "share": f"{least / median(taken):.3f}",
            **common,
        }
        for name, taken in samples.items()
    ]


def table_line(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table's line for the rows of one network and precision."""
    times = {row["side"]: float(row["step_ms"]) for row in rows}
    shown = [f"{times[n]:,.3f}" if n in times else "-" for n in ("mpicnn", *VARIANTS)]
    best = min((times[name] for name in VARIANTS if name in times), default=None)
    ratio = f"{best / times['mpicnn']:.2f}" if best else "-"
    row = rows[0]
    return line(row["network"], [row["batch"], row["precision"], *shown, ratio, row["share"]])


def main(comm: MPI.Intracomm) -> None:
    """Time every network in every precision and print and save what came out."""
    options = parse()
    works = [work_of(text, options.batch) for text in options.models.split(",")]
    if comm.size > 1:
        raise UserError("gpu.py compares on one GPU: start it without mpirun")
    if options.backend not in ("auto", "cuda"):
        raise UserError(f"backend {options.backend}: gpu.py computes with cuda")
    if gpu.count() == 0:
        raise DeviceError("CUDA shows no GPU: this script needs one")
    gpu.use(0)
    backend = ops.load("cuda")
    backend.set_threads(options.threads)
    options.peer = options.peer and find_spec("torch") is not None
    if options.peer:
        import torch

        options.place = "cuda" if torch.cuda.is_available() else "cpu"
    about = machine()
    name, _ = gpu.describe(0)
    print(f"{name}; {versions(about)}")
    print(f"PyTorch on {options.place}" if options.peer else "mpicnn is timed alone")
    limits = {}
    for precision in options.precisions:
        backend.set_precision(precision)
        found = Limits.of(backend, options.edge, options.copied << 20)
        print(f"{precision}: {found.flops / 1e12:.1f} TFLOP/s, {found.bytes / 1e9:.0f} GB/s")
        limits[precision] = found
    print("ms per step, medians of turns; share of the card's limits")
    head = ["batch", "precision", "mpicnn", *VARIANTS, "best / mpicnn", "share"]
    print(line("network", head), flush=True)
    mesh, rows = Mesh(comm), list[dict[str, Any]]()
    for work, precision in product(works, options.precisions):
        task = Task.draw(*work)
        samples, least, notes = compare(mesh, backend, task, precision, limits[precision], options)
        common = {"precision": precision, "gpu": name, **about}
        rows += rows_of(task, samples, least, common)
        print("\n  ".join([table_line(rows[-len(samples) :]), *notes]), flush=True)
        if options.out:
            save(rows, options.out)
        gc.collect()


if __name__ == "__main__":
    launch(main)
