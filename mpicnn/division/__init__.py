"""Who computes what: plans, placements, moves and the program of every rank. Pure, without MPI."""
