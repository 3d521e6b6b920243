"""Time every kernel of training steps, beside PyTorch's and beside what the machine can do."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from calls import Call, of_others, of_task
from mpi4py import MPI
from script import Parser, machine, save, versions
from task import Task
from turns import Cores, Side, measure

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.errors import UserError
from mpicnn.job.launch import launch
from mpicnn.ops import numpy as plain
from mpicnn.ops.interface import Backend

VARIANTS = ("eager", "channels-last")
TURN_S = 0.04  # kernels are short: many turns in a fair time
TOLERANCE = 1e-3  # between results, of the largest value: sums of up to 100,000 float32 products
OTHERS = "others"
_EDGE = 1024  # of the matrices whose product is the measure
_COPIED = 1 << 26  # bytes that a thread copies: more than a cache holds


def sides_of(backend: Backend, call: Call, peer: bool) -> list[Side]:
    """Return mpicnn's and PyTorch's sides of one kernel.

    Raises RuntimeError where their results differ.
    """
    kernel = getattr(backend, call.op)
    sides = [_side("mpicnn", lambda: kernel(*call.args))]
    if not peer:
        return sides
    from aten import counterpart

    ours = first(kernel(*call.args))
    for variant in VARIANTS:
        other = counterpart(call, variant)
        if other is None:
            continue
        theirs = first(other())
        # the masks of two libraries differ, and sgd returns nothing
        if ours is not None and call.op != "dropout":
            difference = np.abs(ours - theirs.detach().numpy()).max(initial=0)
            if not difference <= TOLERANCE * max(1.0, np.abs(ours).max(initial=0)):
                raise RuntimeError(
                    f"{call.op} {call.shapes}: PyTorch {variant} differs by {difference}"
                )
        sides.append(_side(variant, other))
    return sides


def first(results: Any) -> Any:
    """Return a kernel's result, or the first of several."""
    return results[0] if isinstance(results, tuple | list) else results


@dataclass(frozen=True)
class Limits:
    """What the machine can do: a large matrix product (FLOP), and a copy (bytes, both ways)."""

    product: Side
    copy: Side
    threads: int

    @classmethod
    def of(cls, threads: int) -> Limits:
        """Return both for a number of threads, to which NumPy's products must have been set."""
        a, b, c = (np.ones((_EDGE, _EDGE), np.float32) for _ in range(3))
        halves = [(np.ones(_COPIED, np.uint8), np.ones(_COPIED, np.uint8)) for _ in range(threads)]
        pool = ThreadPoolExecutor(threads)
        return cls(
            _side("limit", lambda: np.matmul(a, b, out=c)),
            _side("limit", lambda: list(pool.map(lambda pair: np.copyto(*pair), halves))),
            threads,
        )

    def work(self, call: Call) -> tuple[Side, int, int]:
        """Return what limits a kernel, how much that does, and how much the kernel does."""
        if call.flop:
            return self.product, 2 * _EDGE**3, call.flop
        return self.copy, 2 * _COPIED * self.threads, call.bytes


def _side(name: str, call: Callable[[], Any]) -> Side:
    return Side(name, call, together=False)


def row_of(
    network: str, call: Call, samples: dict[str, list[float]], works: tuple[int, int]
) -> dict[str, Any]:
    """Return the figures of one kernel; `ratio` is PyTorch's best time over mpicnn's.

    `works` are FLOP or bytes of the limit and of the kernel.
    """
    seconds = {name: median(taken) for name, taken in samples.items()}
    ours = seconds["mpicnn"]
    limit, rate = works[0] / seconds["limit"], works[1] / ours
    best = min((seconds[name] for name in VARIANTS if name in seconds), default=None)
    lowest = {name: min(taken) for name, taken in samples.items()}
    times = {
        f"{side}{kind}_ms": f"{found[side] * 1e3:.4f}" if side in found else ""
        for kind, found in (("", seconds), ("_lowest", lowest))
        for side in ("mpicnn", *VARIANTS)
    }
    return {
        "network": network,
        "kernel": call.op,
        "arguments": call.shapes,
        "times": call.times,
        **times,
        "rate": f"{rate / 1e9:.2f}",
        "unit": "GFLOP/s" if call.flop else "GB/s",
        "share": f"{rate / limit:.3f}",
        "ratio": f"{best / ours:.3f}" if best else "",
    }


COLUMNS = (
    "kernel", "times", "mpicnn_ms", "rate", "unit", "share",
    *(f"{variant}_ms" for variant in VARIANTS), "ratio",
)  # fmt: skip


def line(cells: Sequence[object], arguments: object) -> str:
    """Return one line of the table."""
    head, *rest = (str(cell).removesuffix("_ms") or "-" for cell in cells)
    return f"{head:<13}" + "".join(f"{cell:>14}" for cell in rest) + f"  {arguments}"


def parse() -> argparse.Namespace:
    """Return the options of the command line. Raises UserError for wrong ones."""
    known = "marques-50-500,cuda-convnet,default,lenet5,vgg11"
    parser = Parser(__doc__, f"{known},{OTHERS}")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds per kernel and side")
    parser.add_argument("--kernels", default="", help="only these, joined by commas")
    return parser.parse_args()


def main(comm: MPI.Intracomm) -> None:
    """Time the kernels of every network in turn, on one rank."""
    options = parse()
    if comm.size > 1:
        raise UserError("kernels are timed on one rank: start this script without mpirun")
    mesh = Mesh(comm)
    cores = Cores(mesh)
    backend = ops.load(options.backend)
    about = machine()
    print(f"{about['cpu']}, {len(cores.all)} cores; {versions(about)}")
    print(f"backend {backend.NAME}, batch {options.batch}, {options.threads} threads; medians")
    options.peer = options.peer and find_spec("torch") is not None
    if options.peer:
        import torch

        torch.set_num_threads(options.threads)
    # NumPy's product is the measure of all others: give it the same threads
    plain.set_threads(options.threads)
    backend.set_threads(options.threads)
    limits = Limits.of(options.threads)
    rows = []
    for name in options.models.split(","):
        calls = (
            of_others(backend, options.batch)
            if name == OTHERS
            else of_task(backend, Task.draw(name, options.batch))
        )
        print(f"\n{name}")
        print(line(COLUMNS, "arguments"), flush=True)
        for call in calls:
            if options.kernels and call.op not in options.kernels.split(","):
                continue
            limit, *works = limits.work(call)
            sides = [limit, *sides_of(backend, call, options.peer)]
            samples = measure(mesh, cores, sides, options.repeats, options.limit, TURN_S)
            row = row_of(name, call, samples, (works[0], works[1]))
            print(line([row[column] for column in COLUMNS], row["arguments"]), flush=True)
            rows.append(
                row | {"batch": options.batch, "threads": options.threads,
                       "backend": backend.NAME, **about}
            )  # fmt: skip
        if options.out:
            save(rows, options.out)


if __name__ == "__main__":
    launch(main)
