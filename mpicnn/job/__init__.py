"""How a job's ranks start, agree and end together: the standard library and mpi4py alone."""
