"""Name the files that give no image: the first ones as lines, many of them in a list file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mpicnn.comm.mesh import Mesh
from mpicnn.data.source import Found
from mpicnn.data.write import reporting
from mpicnn.errors import UserError, escaped, printable
from mpicnn.job.agreement import from_root
from mpicnn.job.output import say
from mpicnn.text import counted

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_LINES = 10


class BrokenFiles(Exception):  # noqa: N818  (no error yet: it may be that they are to be skipped)
    """Carry what was found, from all ranks, where some files give no image."""

    def __init__(self, found: Found) -> None:
        super().__init__(f"{len(found.broken)} broken")
        self.found = found


def shared(comm: MPI.Intracomm, found: Found) -> Found:
    """Return what all ranks have found together. Collective."""
    text = json.dumps((found.broken, found.transparent))
    parts = [json.loads(part) for part in Mesh(comm).texts(text)]
    broken = {path: why for files, _ in parts for path, why in files.items()}
    return Found(dict(sorted(broken.items())), sum(count for _, count in parts))


def list_file(target: Path) -> Path:
    """Return the path of the list of broken files beside the image file `target`."""
    return target.with_name(f"{target.name}.broken.txt")


def write_list(target: Path, where: str, broken: Mapping[str, str]) -> None:
    """Write a line for each broken file: its path, a tab, and why. Raises UserError."""
    path = list_file(target)
    lines = [f"{escaped(str(Path(where, name)))}\t{why}\n" for name, why in broken.items()]
    with reporting(path):
        path.write_text("".join(lines), encoding="utf-8")


def refusal(
    comm: MPI.Intracomm, target: Path, where: str, broken: Mapping[str, str], count: int
) -> UserError:
    """Return the error that some of `count` images cannot be read, and name them. Collective.

    Where there are many, the first ones are shown and all are written to a list.
    """
    remedy = "mend or remove {}, or give --skip-broken to go on without"
    if len(broken) == 1:
        name, why = next(iter(broken.items()))
        return UserError(f"{Path(where, name)}: {why}; {remedy.format('it')}")
    many = len(broken) > MOST_LINES
    if many:
        from_root(comm, write_list, target, where, broken)
    if comm.rank == 0:
        for name, why in list(broken.items())[:MOST_LINES]:
            say(None, printable(f"mpicnn: broken: {Path(where, name)}: {why}"))
    named = f"all in {list_file(target)}" if many else "named above"
    return UserError(
        f"{where}: {len(broken)} of {counted(count, 'image')} cannot be read, {named};"
        f" {remedy.format('them')}"
    )
