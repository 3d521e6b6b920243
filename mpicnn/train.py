"""`mpirun -n K python -m mpicnn.train [CONFIG] [--option value …]`: train a network."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("train")
