"""Give each of the ranks that share a host's cores some of them for itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpicnn.comm.mesh import Mesh


def pin(mesh: Mesh, threads: int) -> None:
    """Restrict this thread, and those it starts, to this rank's part of the host's cores.

    Nothing changes where `own_cores` says so. Collective.
    """
    mine = sorted(os.sched_getaffinity(0))
    found = mesh.texts(" ".join([socket.gethostname(), *map(str, mine)]))
    hosts = [text.split()[0] for text in found]
    here = [rank for rank, host in enumerate(hosts) if host == hosts[mesh.world.rank]]
    masks = [{int(core) for core in found[rank].split()[1:]} for rank in here]
    own = own_cores(masks, here.index(mesh.world.rank), threads, sorted(mine, key=_place))
    if own is not None:
        os.sched_setaffinity(0, own)


def own_cores(
    masks: Sequence[set[int]], index: int, threads: int, cores: Sequence[int]
) -> set[int] | None:
    """Return the cores of the rank that is number `index` on its host, None to leave it alone.

    `masks` are the cores that each rank of the host may use. Only where they are all the same, and
    hold `threads` cores for every rank, are the `cores` in them divided, in the order given, all
    of them and as evenly as possible: whoever made them differ had a reason.
    """
    ranks = len(masks)
    if ranks == 1 or any(mask != masks[0] for mask in masks) or len(cores) < ranks * threads:
        return None
    return set(cores[len(cores) * index // ranks : len(cores) * (index + 1) // ranks])


def _place(core: int) -> tuple[int, int]:
    """Return a key that puts the hardware threads of one physical core beside each other."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        first = siblings.read_text().replace("-", ",").split(",")[0]
    except OSError:
        return core, core
    return int(first), core
