"""Find how much memory training a network takes, beside PyTorch on the same batch.

Every side trains three steps in a process of its own. The figure is the most memory that was
resident at once, above what was before the network was made: parameters, momentum, gradients,
activations and scratch memory, not the libraries. Of mpicnn there is also the most that its arrays
took, which is the same in every run, and what the program forecast of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from math import prod
from multiprocessing import get_context

from mpi4py import MPI
from peers import Peer
from script import Parser, machine, save, some_of, versions
from step import line
from task import HYPER, Ours, Task
from usage import Peak

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.presets import preset
from mpicnn.forecast.memory import step_peak
from mpicnn.job.launch import launch

VARIANTS = ("eager", "channels-last")
STEPS = 3


def peaks_mb(side: str, name: str, batch: int, backend: str, threads: int) -> tuple[float, float]:
    """Return the peak of one side's first steps, resident and in arrays of NumPy's, in MB.

    To be called in a fresh process.
    """
    train(side, Task.draw("lenet5", 1), backend, threads)  # for what libraries load when used
    task = Task.draw(name, batch)
    peak = Peak()
    train(side, task, backend, threads)
    return peak.mb, peak.arrays_mb


def forecast_mb(name: str, batch: int) -> float:
    """Return what is forecast of mpicnn's arrays: parameters, buffers, momentum, and a step's."""
    model = Task.draw(name, 1).model
    program = compile(model, preset("data", model, (1,)), batch).at((0,))
    held = sum(prod(w.param.shape) * (1 if w.buffer else 2) for w in program.weights)
    return (4 * held + step_peak(program, (0,), 4).bytes) / 1e6


def train(side: str, task: Task, backend: str, threads: int) -> None:
    """Make a network and do the steps."""
    step: Callable[[], float]
    if side == "mpicnn":
        kernels = ops.load(backend)
        kernels.set_threads(threads)
        plan = preset("data", task.model, (1,))
        step = Ours(Mesh(MPI.COMM_SELF), kernels, task, plan).step
    else:
        import torch

        torch.set_num_threads(threads)
        step = Peer(side, task.model, task.weights(), task.x, task.labels, HYPER).step
    for _ in range(STEPS):
        step()


def main(comm: MPI.Intracomm) -> None:
    """Print a line per network: MB of every side, and mpicnn's over the least of PyTorch's."""
    parser = Parser(__doc__, "marques-50-500,cuda-convnet,default,lenet5,vgg11,alexnet-owt")
    parser.add_argument("--variants", type=some_of(VARIANTS), default=VARIANTS, help="of PyTorch")
    options = parser.parse_args()
    sides = ("mpicnn", *(options.variants if options.peer else ()))
    about = machine()
    print(f"MB at the peak; {versions(about)}")
    print(line("network", ["batch", *sides, "ratio", "arrays", "forecast"]), flush=True)
    rows = []
    for name in options.models.split(","):
        found, arrays = {}, 0.0
        for side in sides:
            # An MPI that is started in a child must not think that it is this process.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                asked = side, name, options.batch, options.backend, options.threads
                found[side], taken = pool.submit(peaks_mb, *asked).result()
            arrays = taken if side == "mpicnn" else arrays
        least = min((mb for side, mb in found.items() if side != "mpicnn"), default=float("nan"))
        ratio = found["mpicnn"] / least
        forecast = forecast_mb(name, options.batch)
        mb = [f"{mb:.1f}" for mb in (*found.values(), arrays, forecast)]
        cells = [options.batch, *mb[:-2], f"{ratio:.2f}", *mb[-2:]]
        print(line(name, cells), flush=True)
        rows += [
            {
                "network": name,
                "batch": options.batch,
                "side": side,
                "peak_mb": f"{peak:.1f}",
                "arrays_mb": f"{arrays:.1f}" if side == "mpicnn" else "",
                "forecast_mb": f"{forecast:.1f}" if side == "mpicnn" else "",
                **about,
            }
            for side, peak in found.items()
        ]
    if options.out:
        save(rows, options.out)


if __name__ == "__main__":
    launch(main)
