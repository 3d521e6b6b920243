"""Where the ranks of a job run, and what they compute on."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpicnn.comm.mesh import Mesh
    from mpicnn.devices.choice import Device


@dataclass(frozen=True)
class Rank:
    """Say where a rank runs and what it computes on ("cpu", a GPU's name; "native", "numpy")."""

    host: str
    device: str
    backend: str
    threads: int


def gather_ranks(mesh: Mesh, device: Device) -> list[Rank]:
    """Return all ranks with their devices, in rank order. Collective."""
    mine = Rank(socket.gethostname(), device.name, device.ops.NAME, device.threads)
    return [Rank(**json.loads(text)) for text in mesh.texts(json.dumps(asdict(mine)))]


def numbers(names: Sequence[str]) -> list[int]:
    """Return which of the different names, in order, each one is."""
    order = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return [order[name] for name in names]
