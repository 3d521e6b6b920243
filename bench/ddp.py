"""The same training over all ranks in PyTorch: DistributedDataParallel over gloo."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from peers import Peer
from task import HYPER, Task
from torch.nn.parallel import DistributedDataParallel

from mpicnn.comm.mesh import Mesh
from mpicnn.division.placement import weighted_bounds


@contextmanager
def group(mesh: Mesh) -> Iterator[None]:
    """Join all ranks in a gloo group, the default one, as long as this lasts. Collective."""
    rank, size = mesh.world.rank, mesh.world.size
    hosts = mesh.texts(socket.gethostname())
    address = hosts[0] if len(set(hosts)) > 1 else "127.0.0.1"
    store = dist.TCPStore(address, 0, size, True, wait_for_workers=False) if rank == 0 else None
    port = int(mesh.texts(str(store.port) if store else "")[0])
    store = store or dist.TCPStore(address, port, size, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


class Distributed(Peer):
    """Train the task's network on this rank's part of the batch, gradients averaged by DDP.

    The ranks' parts are equal, so that the mean of their losses is that of the batch. Gradients
    lie in the buckets that travel, which saves a copy of them. Collective, as are its steps.
    """

    def __init__(self, mesh: Mesh, variant: str, task: Task) -> None:
        ranks = mesh.world.size
        bounds = weighted_bounds(len(task.labels), (1.0,) * ranks)
        part = slice(*bounds[mesh.world.rank :][:2])
        super().__init__(
            variant, task.model, task.weights(), task.x[part], task.labels[part], HYPER
        )
        self.net = DistributedDataParallel(self.net, gradient_as_bucket_view=True)
