"""Train convolutional networks over MPI ranks."""
