"""A training run: the loop, the output, and the files in the run directory."""
