"""Print the most bytes that arrays take on any rank in a step, a line for each of OWT's schemes.

A program of its own: in a process that does nothing else, nothing else is counted.
"""

import tracemalloc

import numpy as np
from mpi4py import MPI

from mpicnn import ops
from mpicnn.comm.mesh import Mesh
from mpicnn.division.compile import compile
from mpicnn.division.plan import SCHEMES
from mpicnn.division.presets import preset
from mpicnn.layers import Conv, Flatten, Linear
from mpicnn.models import Model
from mpicnn.step.executor import Executor
from mpicnn.step.state import initial_state

BATCH = 1024
# Its FC layers' input is by far the largest array once it is assembled from all ranks.
WIDE = Model(
    "wide",
    (1, 8, 8),
    (("conv1", Conv(16, 3, padding=1)), ("flatten", Flatten()), ("fc2", Linear(12)),
     ("fc3", Linear(5))),
)  # fmt: skip


def most_memory(mesh, scheme):
    """Return the most bytes that arrays take on this rank in a step."""
    plan = preset("owt", WIDE, mesh.grid, scheme=scheme)
    program = compile(WIDE, plan, BATCH).at(mesh.coords)
    runner = Executor(mesh, ops.load("numpy"), 0)
    state = initial_state(program.weights, mesh.coords, 0, np.float32)
    x = np.ones((len(program.positions), *WIDE.input_shape), np.float32)
    labels = np.zeros(BATCH, np.int64)
    runner.train(program, state, x, labels, 0)
    tracemalloc.start()
    runner.train(program, state, x, labels, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    mesh = Mesh(MPI.COMM_WORLD)
    for scheme in SCHEMES:
        most = int(mesh.collect(np.array(most_memory(mesh, scheme))).max())
        if mesh.world.rank == 0:
            print(scheme, most)
