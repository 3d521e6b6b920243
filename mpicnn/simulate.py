"""`python -m mpicnn.simulate`: what a step takes on a cluster that need not be there."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("simulate")
