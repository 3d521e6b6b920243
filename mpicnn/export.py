"""`python -m mpicnn.export RUN FILE`: a trained network for other programs."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("export")
