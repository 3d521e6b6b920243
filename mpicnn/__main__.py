"""`python -m mpicnn COMMAND …`: what the console script `mpicnn` does."""

from mpicnn.commands import console

if __name__ == "__main__":
    console()
