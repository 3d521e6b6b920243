"""`python -m mpicnn.evaluate RUN`: how good a trained network is on test examples."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("evaluate")
