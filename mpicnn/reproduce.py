"""`python -m mpicnn.reproduce`: the papers' tables beside what is computed or simulated."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("reproduce")
