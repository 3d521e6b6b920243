"""Say which commands there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpicnn.run.setup import read_command

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: MPI.Intracomm, argv: Sequence[str]) -> None:
    """Show the commands, or refuse a word that is none. Collective."""
    read_command(comm, argv[1:])
