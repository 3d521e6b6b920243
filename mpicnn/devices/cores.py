"""How many cores a rank may use: its part of what it shares with other ranks of its host."""

from __future__ import annotations

import json
import math
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpicnn.comm.mesh import Mesh


@dataclass(frozen=True)
class CoreLimits:
    """Say what limits the cores of one rank.

    `cores` are the numbers of those that it may run on (its affinity); `quotas` the cores' worth of
    time that each cgroup around it has, by the cgroup's identity; `per_task` is what SLURM was
    asked for with `--cpus-per-task`, 0 where it says nothing.
    """

    host: str
    cores: Sequence[int]
    quotas: Mapping[str, float]
    per_task: int = 0


def default_threads(rank: int, ranks: Sequence[CoreLimits]) -> int:
    """Return how many threads the rank of this number should use: at least one.

    Ranks of one host divide the cores that several of them may run on, and the quota of a cgroup
    that several of them are in. No rank uses more than SLURM gave it. What is left of a core is
    left alone: a thread that runs out of time holds up all the others.
    """
    mine = ranks[rank]
    here = [each for each in ranks if each.host == mine.host]
    users = Counter(core for each in here for core in each.cores)
    unit = math.lcm(*users.values())  # thirds of cores add up to whole ones, rounded once
    shares = [sum(unit // users[core] for core in mine.cores) / unit]
    for group, quota in mine.quotas.items():
        members = sum(group in each.quotas for each in here)
        shares.append(quota / members)
    if mine.per_task:
        shares.append(mine.per_task)
    return max(1, int(min(shares)))


def threads_of(mesh: Mesh, environ: Mapping[str, str]) -> int:
    """Return the number of threads for this rank where none was asked for. Collective."""
    per_task = environ.get("SLURM_CPUS_PER_TASK", "")
    mine = CoreLimits(
        socket.gethostname(),
        sorted(os.sched_getaffinity(0)),
        cpu_quotas(),
        int(per_task) if per_task.isdecimal() else 0,
    )
    found = mesh.texts(json.dumps(asdict(mine)))
    return default_threads(mesh.world.rank, [CoreLimits(**json.loads(text)) for text in found])


def cpu_quotas(root: Path = Path("/")) -> dict[str, float]:
    """Return the quotas of the cgroups that this process is in, in cores, by their identity.

    Both versions of cgroups are looked at, and all levels: the tightest limit may be a container's
    or a job's. `root` is the directory under which `proc` and the mounts lie.
    """
    found = {}
    for group, mount in _groups(root):
        for level in (group, *group.parents):
            if (quota := _quota(level)) is not None:
                known = level.stat()
                found[f"{known.st_dev}:{known.st_ino}"] = quota
            if level == mount:
                break
    return found


def _groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the directory of each cgroup of this process that can hold a quota, and its mount."""
    process = root / "proc" / "self"
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        member = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for line in member:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in mounts:
        before, _, after = line.partition(" - ")
        _, _, _, top, point, *_ = before.split()
        kind, *_, options = after.split()
        # Version 2 has one tree for all controllers, which have no names there.
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller not in paths or (controller and "cpu" not in options.split(",")):
            continue
        mount = root / point.lstrip("/")
        own = PurePosixPath(paths[controller])
        # A container may see its own cgroup as the top of the mount, and be told the host's path.
        group = mount / (own.relative_to(top) if own.is_relative_to(top) else "")
        yield group if os.path.isdir(group) and ".." not in group.parts else mount, mount


def _quota(group: Path) -> float | None:
    """Return the quota of one cgroup, in cores, None where it has none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # "max" is no number
    return cores if cores > 0 else None
