"""Find how much memory training a network takes, beside PyTorch on the same batch.

Every side trains three steps in a process of its own. The figure is the most memory that was
resident at once, above what was before the network was made: parameters, momentum, gradients,
activations and scratch memory, not the libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from mpi4py import MPI
from peers import Peer
from script import Parser, machine, save, some_of, versions
from step import line
from task import HYPER, Ours, Task
from usage import Peak

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.presets import preset
from mpicnn.job.launch import launch

VARIANTS = ("eager", "channels-last")
STEPS = 3


def peak_mb(side: str, name: str, batch: int, backend: str, threads: int) -> float:
    """Return the peak of one side's first steps, in MB; to be called in a fresh process."""
    train(side, Task.draw("lenet5", 1), backend, threads)  # for what libraries load when used
    task = Task.draw(name, batch)
    peak = Peak()
    train(side, task, backend, threads)
    return peak.mb


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
    print(versions(about))
    print(line("network", ["batch", *(f"{side}, MB" for side in sides), "ratio"]), flush=True)
    rows = []
    for name in options.models.split(","):
        found = {}
        for side in sides:
            # An MPI that is started in a child must not think that it is this process.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                asked = side, name, options.batch, options.backend, options.threads
                found[side] = pool.submit(peak_mb, *asked).result()
        least = min((mb for side, mb in found.items() if side != "mpicnn"), default=float("nan"))
        ratio = found["mpicnn"] / least
        cells = [options.batch, *(f"{mb:.1f}" for mb in found.values()), f"{ratio:.2f}"]
        print(line(name, cells), flush=True)
        rows += [
            {"network": name, "batch": options.batch, "side": side, "peak_mb": f"{mb:.1f}", **about}
            for side, mb in found.items()
        ]
    if options.out:
        save(rows, options.out)


if __name__ == "__main__":
    launch(main)
