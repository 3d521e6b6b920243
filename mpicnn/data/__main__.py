"""Prepare image files and show what is in them: `python -m mpicnn.data --help`."""

from mpicnn.commands import start

if __name__ == "__main__":
    start("data")
