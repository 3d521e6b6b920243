"""What started the ranks, as their environment tells it: mpirun, or SLURM's srun."""

from __future__ import annotations

from collections.abc import Mapping

Environ = Mapping[str, str]


def size_and_rank(environ: Environ) -> tuple[int | None, int]:
    """Return size and rank as the launchers of MPICH (and SLURM's pmi2) and Open MPI tell them.

    The size is None where none of them does.
    """
    for size, rank in (
        ("PMI_SIZE", "PMI_RANK"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ):
        if environ.get(size, "").isdecimal():
            return int(environ[size]), int(environ.get(rank, "0"))
    return None, 0


def by_srun(environ: Environ) -> bool:
    """Say whether srun started this process, and no mpirun that was itself started by srun."""
    mpirun = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE")
    return "SLURM_STEP_NUM_TASKS" in environ and not any(name in environ for name in mpirun)


def srun_for(library: str) -> str:
    """Return the srun that starts ranks of an MPI library, whose name and version are given."""
    return "srun --mpi=pmix" if library.startswith("Open MPI") else "srun --mpi=pmi2"


def command(environ: Environ, library: str, ranks: int) -> str:
    """Return what stands before `python` to start so many ranks as these were, like "mpirun -n 4".

    It is "" for one rank.
    """
    if ranks == 1:
        return ""
    return f"{srun_for(library) if by_srun(environ) else 'mpirun'} -n {ranks}"


def mismatch(environ: Environ, library: str, started: int, seen: int) -> str:
    """Return in one line what to do where a launcher `started` other ranks than MPI has `seen`."""
    if by_srun(environ):
        used = environ.get("SLURM_MPI_TYPE", "")
        srun = f"srun --mpi={used}" if used else "srun"
        return (
            f"{srun} started {started} processes, but mpi4py's library ({library}) sees {seen}: "
            f"that library needs {srun_for(library)}; srun --mpi=list shows what this cluster has"
        )
    return (
        f"the launcher started {started} processes, but mpi4py's library ({library}) sees {seen}: "
        "mpirun and mpi4py belong to different MPIs; use that library's own mpirun"
    )
