"""Prepare image files and say what is in them: `python -m mpicnn.data --help`."""

import sys
from typing import TYPE_CHECKING

from mpicnn.job.launch import launch

if TYPE_CHECKING:
    from mpi4py import MPI


def main(comm: "MPI.Intracomm") -> None:
    """Run the command line."""
    from mpicnn.data.cli import run

    run(comm, sys.argv[1:])


if __name__ == "__main__":
    launch(main)
