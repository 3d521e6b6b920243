"""`python -m mpicnn.report RUN`: draw the curves of a run."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("report")
