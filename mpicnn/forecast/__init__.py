"""What a program costs, before anything runs. Pure, without MPI."""
